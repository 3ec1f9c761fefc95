//! A proxy in the mode dedicated works for the one workload whose namespace it shares.

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

use crate::scene::{self, HTTP, LIMIT, MARKER, answered, answered_soon};

/// A proxy in a pod's own namespace.
struct Dedicated {
    process: Process,
    log: PathBuf,
}

impl Dedicated {
    fn start(pod: &Host, mut settings: Settings, by: &[(&str, &str)], keys: &[(&str, String)]) -> Self {
        let directory = pod.run_directory().join(format!("dedicated-{}", pod.name));
        fs::create_dir_all(&directory).unwrap();
        settings.pods.clear();
        settings.capture.bpf_directory = directory.join("bpf");
        settings.extra.extend(keys.iter().map(|(key, value)| ((*key).to_owned(), json!(value))));
        let (file, log) = (directory.join("settings.yaml"), directory.join("proxy.log"));
        fs::write(&file, settings.to_yaml().unwrap()).unwrap();
        let output = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new(ztunnel().unwrap());
        command
            .args(["proxy", "--config"])
            .arg(file)
            .envs(by.iter().copied().collect::<BTreeMap<_, _>>())
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let this = Self { process: Process::start(pod, &mut command).unwrap(), log };
        scene::eventually("readiness of the dedicated proxy", || {
            pod.enter(|| TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], 15021))).is_ok())
                && this.said().contains("pod enrolled")
        });
        this
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// A mesh in which pod 1 of node a is served by nobody but itself.
fn mesh_without<'world>(world: &'world World) -> Mesh<'world> {
    let own = workload_uid(world.pod("a", 1));
    Mesh::builder(world)
        .settings(move |settings| settings.pods.retain(|pod| pod.workload != own))
        .start()
        .unwrap()
}

/// Requests both ways between a workload with its own proxy and a pod of another node.
fn speaks_both_ways(by: &[(&str, &str)], keys: impl FnOnce(&Host) -> Vec<(&'static str, String)>) {
    let world = World::two_nodes().unwrap();
    let mut mesh = mesh_without(&world);
    let (own, other) = (world.pod("a", 1), world.pod("b", 0));
    let settings = mesh.proxy("a").settings.clone();
    let mut dedicated = Dedicated::start(own, settings, by, &keys(own));
    let _servers = [own, other].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    let sniffer = Sniffer::between(world.node("a"), "b", MARKER.as_bytes()).unwrap();
    for family in Family::BOTH {
        for to in [other.at(family, HTTP), Mesh::service(other).at(family, 80)] {
            let answer = answered_soon(own, to);
            assert_eq!(answer.peer.ip().to_canonical(), own.address(family));
            assert_eq!(answer.client_peer, to);
        }
        let answer = answered(other, own.at(family, HTTP));
        assert_eq!(answer.peer.ip().to_canonical(), other.address(family));
        answered(other, Mesh::service(own).at(family, 80));
        // Outside of the mesh is reached as before.
        let away = world.outside().serve(Kind::Http, HTTP).unwrap();
        answered(own, world.outside().at(family, HTTP));
        drop(away);
    }
    let line = format!("src.identity=\"{}\"", identity(own));
    mesh.proxy("b").wait_for_log(&line, LIMIT).unwrap();
    scene::eventually("the caller's identity in the log of the dedicated proxy", || {
        dedicated.said().contains(&format!("src.identity=\"{}\"", identity(other)))
    });
    thread::sleep(SETTLE);
    assert_eq!(sniffer.finish().unwrap().hits, 0, "something crossed in the clear");
    assert!(!dedicated.said().contains("panicked"));
    let status = dedicated.process.terminate(LIMIT).unwrap();
    assert!(status.success(), "{status}");
    scene::unharmed(&mut mesh);
}

#[test]
fn a_workload_with_its_own_proxy_speaks_with_the_mesh() {
    speaks_both_ways(&[], |own| {
        vec![("mode", "dedicated".to_owned()), ("workload", workload_uid(own))]
    });
}

#[test]
fn the_environment_names_the_workload_of_a_dedicated_proxy() {
    let environment = [("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", "default/a-1/a-1")];
    speaks_both_ways(&environment, |_own| Vec::new());
}
