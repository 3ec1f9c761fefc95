//! How it ends: everything removed, and a look whether that is true; or everything left, with a
//! text that says what to try.

use std::fs;
use std::path::Path;

use super::PORT;
use super::page::Page;
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
pub(super) fn what_to_try(page: &Page, world: &World, traffic: &Path) {
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
        ("with these set in a shell".to_owned(), "what it does"),
        ("$POD bash".to_owned(), "a shell in pod a-0"),
        (
            format!("$POD {curl} http://{}/", service.v4),
            "a request by service address",
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
            "its view of the mesh (admin)",
        ),
        (
            format!("$NODE {curl} -X POST '127.0.0.1:15000/logging?level=debug'"),
            "let it log more",
        ),
        (
            "tail -f $FILES/node-a/proxy.log".to_owned(),
            "its log, a line for each connection",
        ),
        (
            "vi $FILES/node-a/settings.yaml".to_owned(),
            "its settings: it takes up what changes",
        ),
        ("cargo xtask demo --clean".to_owned(), "remove everything"),
    ];
    page.table(&rows.map(|(command, meaning)| vec![command, meaning.to_owned()]));
}

/// Removes what earlier runs left, and says so.
pub fn clean() {
    cleanup::sweep();
    println!("what earlier runs left is removed");
}
