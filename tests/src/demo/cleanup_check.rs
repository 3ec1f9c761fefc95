//! The end of the demo: either everything is removed and the removal is checked, or everything stays
//! and a list of commands is printed.

use std::fs;
use std::path::Path;

use super::PORT;
use super::page::Page;
use crate::cleanup;
use crate::net::{Family, World};
use crate::proxy::Mesh;

/// The names and processes that must not exist after the removal.
pub(super) struct Leftovers {
    prefix: String,
    pids: Vec<u32>,
}

impl Leftovers {
    /// The names of this world, and these processes.
    pub(super) fn of(world: &World, pids: Vec<u32>) -> Self {
        Self {
            prefix: world.prefix().to_owned(),
            pids,
        }
    }

    /// Checks that nothing is left. Programs are pinned in BPF file systems that are mounted below the
    /// run's directory, so without a mount there is no pin.
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
            "no namespace, mount, file or pinned kernel program is left",
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

/// Prints commands to try in nodes that were kept.
pub(super) fn print_commands(page: &Page, world: &World, traffic: &Path) {
    let enter = |name: &str| format!("nsenter --net=/run/netns/{name}");
    let service = Mesh::service(world.pod("b", 0));
    let curl = "curl -s";
    let directory = world.directory().display();
    page.text(&format!(
        "POD='{}'   # pod a-0\nNODE='{}'     # node a\nTRAFFIC={}\nFILES={directory}\n\n",
        enter(world.pod("a", 0).namespace.name()),
        enter(world.node("a").host.namespace.name()),
        traffic.display(),
    ));
    let rows = [
        ("command (with the variables above)".to_owned(), "effect"),
        ("$POD bash".to_owned(), "a shell in pod a-0"),
        (
            format!("$POD {curl} http://{}/", service.v4),
            "a request to a service address",
        ),
        (
            format!("$POD {curl} -g 'http://[{}]/'", service.v6),
            "the same over IPv6",
        ),
        (
            format!(
                "$POD $TRAFFIC http --to {} --connections 16",
                world.pod("b", 0).at(Family::V4, PORT)
            ),
            "requests over 16 connections, for 2 s",
        ),
        (
            format!("$NODE {curl} http://127.0.0.1:15020/metrics"),
            "the metrics of node a's proxy",
        ),
        (
            format!("$NODE {curl} http://127.0.0.1:15000/config_dump"),
            "the mesh as its proxy knows it",
        ),
        (
            format!("$NODE {curl} -X POST '127.0.0.1:15000/logging?level=debug'"),
            "more log messages",
        ),
        (
            "tail -f $FILES/node-a/proxy.log".to_owned(),
            "its log with a line for each connection",
        ),
        (
            "vi $FILES/node-a/settings.yaml".to_owned(),
            "its settings; changes take effect at once",
        ),
        ("cargo xtask demo --clean".to_owned(), "remove everything"),
    ];
    page.table(&rows.map(|(command, meaning)| vec![command, meaning.to_owned()]));
}

/// Removes the resources of earlier runs.
pub fn clean() {
    cleanup::sweep();
    println!("the resources of earlier runs are removed");
}
