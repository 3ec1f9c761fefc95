//! A proxy in dedicated mode serves the workload whose network namespace it shares.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use serde_json::json;
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::process::Process;
use ztunnel_tests::proxy::{Mesh, Settings, identity, workload_uid, ztunnel};
use ztunnel_tests::sniff::{SETTLE, Sniffer};
use ztunnel_tests::traffic::Kind;

use crate::assertions::{self, HTTP, LIMIT, MARKER, expect_answer, wait_for_answer};

/// A proxy in a pod's network namespace.
struct Dedicated {
    process: Process,
    log: PathBuf,
}

impl Dedicated {
    fn start(
        pod: &Host,
        mut settings: Settings,
        by: &[(&str, &str)],
        keys: &[(&str, String)],
    ) -> Self {
        let directory = pod.run_directory().join(format!("dedicated-{}", pod.name));
        fs::create_dir_all(&directory).unwrap();
        settings.pods.clear();
        settings.capture.bpf_directory = directory.join("bpf");
        settings.extra.extend(
            keys.iter()
                .map(|(key, value)| ((*key).to_owned(), json!(value))),
        );
        let (file, log) = (directory.join("settings.yaml"), directory.join("proxy.log"));
        fs::write(&file, settings.to_yaml().unwrap()).unwrap();
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = Command::new(ztunnel().unwrap());
        command
            .args(["proxy", "--config"])
            .arg(file)
            .envs(by.iter().copied().collect::<BTreeMap<_, _>>())
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let this = Self {
            process: Process::start(pod, &mut command).unwrap(),
            log,
        };
        assertions::eventually("readiness of the dedicated proxy", || {
            pod.enter(|| TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], 15021))).is_ok())
                && this.output().contains("pod enrolled")
        });
        this
    }

    fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// A mesh in which no node proxy serves pod 1 of node a.
fn mesh_without<'world>(world: &'world World) -> Mesh<'world> {
    let own = workload_uid(world.pod("a", 1));
    Mesh::builder(world)
        .settings(move |settings| settings.pods.retain(|pod| pod.workload != own))
        .start()
        .unwrap()
}

/// Sends requests in both directions between a workload with its own proxy and a pod of another
/// node.
fn assert_traffic_in_both_directions(
    by: &[(&str, &str)],
    keys: impl FnOnce(&Host) -> Vec<(&'static str, String)>,
) {
    let world = World::two_nodes().unwrap();
    let mut mesh = mesh_without(&world);
    let (own, other) = (world.pod("a", 1), world.pod("b", 0));
    let settings = mesh.proxy("a").settings.clone();
    let mut dedicated = Dedicated::start(own, settings, by, &keys(own));
    let _servers = [own, other].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    let sniffer = Sniffer::between(world.node("a"), "b", MARKER.as_bytes()).unwrap();
    for family in Family::BOTH {
        for to in [other.at(family, HTTP), Mesh::service(other).at(family, 80)] {
            let answer = wait_for_answer(own, to);
            assert_eq!(answer.peer.ip().to_canonical(), own.address(family));
            assert_eq!(answer.client_peer, to);
        }
        let answer = expect_answer(other, own.at(family, HTTP));
        assert_eq!(answer.peer.ip().to_canonical(), other.address(family));
        expect_answer(other, Mesh::service(own).at(family, 80));
        // Destinations outside the mesh are reached without a tunnel.
        let away = world.outside().serve(Kind::Http, HTTP).unwrap();
        expect_answer(own, world.outside().at(family, HTTP));
        drop(away);
    }
    let line = format!("src.identity=\"{}\"", identity(own));
    mesh.proxy("b").wait_for_log(&line, LIMIT).unwrap();
    assertions::eventually(
        "the client's identity in the log of the dedicated proxy",
        || {
            dedicated
                .output()
                .contains(&format!("src.identity=\"{}\"", identity(other)))
        },
    );
    thread::sleep(SETTLE);
    assert_eq!(
        sniffer.finish().unwrap().marker_packets,
        0,
        "the marker crossed the link in plaintext"
    );
    assert!(!dedicated.output().contains("panicked"));
    let status = dedicated.process.terminate(LIMIT).unwrap();
    assert!(status.success(), "{status}");
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn a_dedicated_proxy_connects_its_workload_to_the_mesh() {
    assert_traffic_in_both_directions(&[], |own| {
        vec![
            ("mode", "dedicated".to_owned()),
            ("workload", workload_uid(own)),
        ]
    });
}

#[test]
fn the_environment_selects_the_workload_of_a_dedicated_proxy() {
    let environment = [
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "default/a-1/a-1"),
    ];
    assert_traffic_in_both_directions(&environment, |_own| Vec::new());
}
