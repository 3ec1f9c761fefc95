//! A process in its own cgroup, as in every container.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ztunnel_tests::net::{Family, World};
use ztunnel_tests::process::Process;
use ztunnel_tests::proxy::{Mesh, companion};
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
            let mut command = Command::new("sh");
            command
                .arg("-c")
                .arg("echo $$ > \"$1/cgroup.procs\" && shift && exec \"$@\"")
                .arg("sh")
                .arg(&cgroup.0)
                .arg(companion("traffic").unwrap())
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
