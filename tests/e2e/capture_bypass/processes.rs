//! Processes in cgroups of their own, as in every container.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::process::{self, Process};
use ztunnel_tests::proxy::{Mesh, companion, workload_uid};
use ztunnel_tests::traffic::Kind;

use super::mesh;
use crate::connections::{TIMEOUT, sniffed};

/// A text in every request of the load generator.
const REQUEST_LINE: &str = "HTTP/1.1";

/// A cgroup below the root of the unified hierarchy, removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn create(name: &str) -> Self {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(Path::new)
            .into_iter()
            .find(|path| path.join("cgroup.procs").exists())
            .expect("a unified cgroup hierarchy must be mounted");
        let path = root.join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

#[test]
fn a_process_in_a_child_cgroup_is_captured() {
    let world = World::two_nodes().unwrap();
    let _mesh = mesh(&world);
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let running = server.serve(Kind::Http, 8080).unwrap();
    let cgroup = Cgroup::create(&format!("{}-child", world.prefix()));
    for family in Family::BOTH {
        for to in [
            server.at(family, 8080),
            Mesh::service(server).at(family, 80),
        ] {
            let before = running.accepted();
            let mut command = process::in_cgroup(&cgroup.0, &companion("traffic").unwrap());
            command
                .args(["connect", "--seconds", "0.2", "--to"])
                .arg(to.to_string())
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            let (status, seen) = sniffed(&world, REQUEST_LINE, || {
                Process::start(client, &mut command)
                    .unwrap()
                    .wait(TIMEOUT)
                    .unwrap()
            });
            assert!(status.success(), "{to}: {status}");
            assert!(running.accepted() > before, "{to}: nothing arrived");
            assert_eq!(
                seen.marker_packets, 0,
                "{to}: the request crossed the link in plaintext"
            );
        }
    }
}

/// The programs are attached to a cgroup that contains the proxy and the first pod's process. The
/// second pod's process is elsewhere.
#[test]
fn a_process_outside_of_the_programs_cgroup_is_reported() {
    let world = World::two_nodes().unwrap();
    let cgroup = Cgroup::create(&format!("{}-node", world.prefix()));
    let of_programs = json!(cgroup.0);
    let builder = Mesh::builder(&world).settings(|settings| {
        let cgroup = ("cgroup".to_owned(), of_programs.clone());
        settings.capture.extra.extend([cgroup]);
    });
    let mut mesh = builder.prepare().unwrap();
    let (inside, outside) = (world.pod("a", 0), world.pod("a", 1));
    let mut serve = process::in_cgroup(&cgroup.0, &companion("traffic").unwrap());
    serve
        .args(["serve", "http", "--listen", "[::]:8080"])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let _inside = Process::start(inside, &mut serve).unwrap();
    let _outside = outside.serve(Kind::Http, 8080).unwrap();
    let proxy = mesh.proxy("a");
    proxy.cgroup = Some(cgroup.0.clone());
    proxy.start().unwrap();
    let text = "outside of the cgroup that the eBPF programs are attached to";
    proxy.wait_for_log(text, Duration::from_secs(10)).unwrap();
    let log = proxy.log();
    let reported: Vec<&str> = log.lines().filter(|line| line.contains(text)).collect();
    assert_eq!(reported.len(), 1, "{reported:?}");
    let is_named = reported[0].contains(&workload_uid(outside)) && reported[0].contains(":8080");
    assert!(is_named, "{reported:?}");
    let pending = proxy
        .metrics()
        .unwrap()
        .sum("istio_pending_proxy_count_total", &[]);
    assert_eq!(pending, 1.0);
}
