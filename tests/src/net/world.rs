//! The world of a test: nodes, their pods, and a host outside the mesh.
//!
//! ```text
//!   pod a/0 ── veth ─┐                          ┌─ veth ── pod b/0
//!   pod a/1 ── veth ─┤ node a ═══ veth ═══ node b├─ veth ── pod b/1
//!                    └──── veth ── outside ── veth ──┘
//! ```
//! Nodes forward packets (no bridge, no address translation). Each host has one IPv4 and one IPv6
//! address. Service addresses have no route: without a mesh, a connection to one is unreachable.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};

use super::Namespace;
use super::build;
use super::namespace;
use crate::cleanup::{self, Resource};

/// A host of the world: a pod, a node, or the host outside.
#[derive(Debug)]
pub struct Host {
    /// The short name, such as `a-0` or `outside`.
    pub name: String,
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
    /// The network namespace.
    pub namespace: Namespace,
    pub(super) run_directory: PathBuf,
}

impl Host {
    /// The address of this family.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// A socket address on this host.
    #[must_use]
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family), port)
    }

    /// Runs `work` in a thread inside this host's network namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.enter(work)
    }

    /// Starts a process on this host, with the first file of each pair mounted over the second. The
    /// process is recorded, so that a later sweep kills it if the harness is killed. The caller ends it
    /// (see [`crate::process::Process`]).
    ///
    /// # Errors
    /// When it cannot be started, or a file does not exist.
    pub(crate) fn start_with_files(
        &self,
        command: &mut Command,
        files: &[(&Path, &Path)],
    ) -> Result<Child> {
        let child = self
            .namespace
            .enter(|| {
                // The process inherits the mount namespace of this thread.
                if !files.is_empty() {
                    namespace::replace_files(files)?;
                }
                command.spawn()
            })
            .with_context(|| format!("starting {command:?} on {}", self.name))?;
        cleanup::record_process(&self.run_directory, child.id()).context("recording a process")?;
        Ok(child)
    }

    /// The directory for files of the world.
    #[must_use]
    pub fn run_directory(&self) -> &Path {
        &self.run_directory
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// A simulated node: a network namespace, in which its proxy runs, and its pods.
#[derive(Debug)]
pub struct Node {
    /// The node itself. Its addresses are those on its first link to another node; a single node has
    /// those on the links to its pods.
    pub host: Host,
    /// The pods.
    pub pods: Vec<Host>,
    pub(super) index: u8,
}

impl Node {
    /// The node's name, such as `a`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.host.name
    }
}

/// The nodes and pods of a world to build.
#[derive(Debug, Default)]
pub struct WorldBuilder {
    nodes: Vec<(String, u8)>,
    congestion: Option<String>,
}

impl WorldBuilder {
    /// Adds a node with some pods.
    #[must_use]
    pub fn node(mut self, name: &str, pods: u8) -> Self {
        self.nodes.push((name.to_owned(), pods));
        self
    }

    /// Sets the congestion control of every route; the default is `cubic`.
    #[must_use]
    pub fn congestion(mut self, name: &str) -> Self {
        self.congestion = Some(name.to_owned());
        self
    }

    /// Builds the world. Removes the resources of runs that were killed first.
    ///
    /// # Errors
    /// Without root, or when the kernel lacks namespaces or veth.
    pub fn build(self) -> Result<World> {
        static SEQUENCE: AtomicU32 = AtomicU32::new(0);
        ensure!(
            nix::unistd::geteuid().is_root(),
            "simulated nodes need root"
        );
        cleanup::on_signal();
        cleanup::sweep();
        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{}{}-{sequence}", cleanup::PREFIX, std::process::id());
        let directory = PathBuf::from(format!("/run/{prefix}"));
        let creation_guard = cleanup::creation_guard();
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        let run_directory = RunDirectory {
            registered: cleanup::register(Resource::Directory(directory.clone())),
            path: directory,
        };
        drop(creation_guard);
        let congestion = self.congestion.as_deref().unwrap_or("cubic");
        let plan = build::Plan {
            prefix: &prefix,
            directory: &run_directory.path,
            congestion,
        };
        let mut nodes = Vec::new();
        for (index, (name, pods)) in (0..).zip(&self.nodes) {
            nodes.push(plan.node(index, name, *pods)?);
        }
        plan.connect(&mut nodes)?;
        let outside = plan.outside(&nodes)?;
        Ok(World {
            nodes,
            outside,
            prefix,
            run_directory,
        })
    }
}

#[derive(Debug)]
struct RunDirectory {
    path: PathBuf,
    registered: cleanup::Registration,
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        cleanup::wait_for_cleanup();
        cleanup::remove_directory(&self.path);
        self.registered.forget();
    }
}

/// Simulated nodes with their pods, and one host outside.
#[derive(Debug)]
pub struct World {
    nodes: Vec<Node>,
    outside: Host,
    prefix: String,
    // The last field: fields are dropped in order, and hosts may use the directory.
    run_directory: RunDirectory,
}

impl World {
    /// A builder without nodes.
    #[must_use]
    pub fn builder() -> WorldBuilder {
        WorldBuilder::default()
    }

    /// Two nodes, `a` and `b`, with two pods each.
    ///
    /// # Errors
    /// As [`WorldBuilder::build`].
    pub fn two_nodes() -> Result<Self> {
        Self::builder().node("a", 2).node("b", 2).build()
    }

    /// A node by its name.
    ///
    /// # Panics
    /// When it does not exist.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        match self.nodes.iter().find(|node| node.name() == name) {
            Some(node) => node,
            None => panic!("the world has no node {name}"),
        }
    }

    /// A pod by the name of its node and its index.
    ///
    /// # Panics
    /// When it does not exist.
    #[must_use]
    pub fn pod(&self, node: &str, index: usize) -> &Host {
        match self.node(node).pods.get(index) {
            Some(pod) => pod,
            None => panic!("node {node} has no pod {index}"),
        }
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A host outside the mesh, which every pod can reach.
    #[must_use]
    pub fn outside(&self) -> &Host {
        &self.outside
    }

    /// The prefix of every name of this world.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The directory for files of the world; removed with the world.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.run_directory.path
    }

    /// The name of a node's link to the node `to`.
    #[must_use]
    pub fn link_to(to: &str) -> String {
        build::link_to(to)
    }

    /// The name of a node's link to its pod with this index.
    #[must_use]
    pub fn link_to_pod(index: usize) -> String {
        build::pod_link(index)
    }

    /// Keeps all resources when the process ends.
    pub fn leak(self) {
        cleanup::keep();
        std::mem::forget(self);
    }
}
