//! How it ends: everything removed, and a look whether that is true; or everything left, with a
//! text that says what to try.

use std::fs;
use std::path::Path;

use super::page::Page;
use super::{PORT, SERVICE_PORT};
use crate::cleanup;
use crate::net::{Family, World};
use crate::proxy::Mesh;

/// What to look for after everything has been removed.
pub(super) struct Traces {
    prefix: String,
    pids: Vec<u32>,
}

impl Traces {
    /// What this world must not leave behind, with these processes in it.
    pub(super) fn of(world: &World, pids: Vec<u32>) -> Self {
        Self {
            prefix: world.prefix().to_owned(),
            pids,
        }
    }

    /// Claims that nothing is left. Pinned programs lived in BPF file systems that were mounted
    /// below the run's directory, so no mount means no pin.
    pub(super) fn check(&self, page: &mut Page) {
        let absent = |directory: &str| {
            fs::read_dir(directory).map_or(true, |entries| {
                !entries.flatten().any(|entry| {
                    entry
                        .file_name()
                        .to_string_lossy()
                        .starts_with(&self.prefix)
                })
            })
        };
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        page.claim(
            absent("/run/netns") && absent("/run") && !mounts.contains(&self.prefix),
            "no namespace, no mount, no file and no pinned kernel program is left",
        );
        page.claim(
            !self
                .pids
                .iter()
                .any(|pid| Path::new(&format!("/proc/{pid}")).exists()),
            "no process is left",
        );
    }
}

/// What a person can do with nodes that were kept.
pub(super) fn what_to_try(world: &World, traffic: &Path) -> String {
    let enter = |name: &str| format!("nsenter --net=/run/netns/{name}");
    let service = Mesh::service(world.pod("b", 0));
    format!(
        "\
Set these first:
  A0=\"{a0}\"   # pod a-0
  NODE=\"{node}\"  # node a
Then:
  $A0 bash                                               a shell in pod a-0
  $A0 curl -s http://{v4}/                          a request by service address
  $A0 curl -s -g 'http://{v6}/'                   the same over IPv6
  $A0 {traffic} \\
      http --to {pod} --connections 16      load: requests over 16 connections
  $NODE curl -s http://127.0.0.1:15020/metrics           node a's metrics
  $NODE curl -s http://127.0.0.1:15000/config_dump       node a's view of the mesh (admin)
  $NODE curl -s -X POST '127.0.0.1:15000/logging?level=debug'
  tail -f {directory}/node-*/proxy.log                    the logs
  edit {directory}/node-*/settings.yaml                   taken up by the running proxies
To remove everything:
  cargo xtask demo --clean",
        a0 = enter(world.pod("a", 0).namespace.name()),
        node = enter(world.node("a").host.namespace.name()),
        v4 = service.at(Family::V4, SERVICE_PORT),
        v6 = service.at(Family::V6, SERVICE_PORT),
        pod = world.pod("b", 0).at(Family::V4, PORT),
        traffic = traffic.display(),
        directory = world.directory().display(),
    )
}

/// Removes what earlier runs left, and says so.
pub fn clean() {
    cleanup::sweep();
    println!("what earlier runs left is removed");
}
