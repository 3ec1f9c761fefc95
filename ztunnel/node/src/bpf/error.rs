//! Errors of the kernel programs and their maps, with what an operator can do about each.

use std::io;
use std::path::PathBuf;

use super::permissions::permission_hint;
use mesh::NetnsCookie;

/// Why the kernel programs could not be set up or used. The cause is always on this node: no peer
/// and no application causes it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cgroup v2 hierarchy is mounted, or only part of it is visible.
    #[error(
        "no cgroup of version 2 is visible that contains the pods of this node: in a container, mount \
         the node's /sys/fs/cgroup, or name its mount in capture.cgroup (ZTUNNEL_CAPTURE_CGROUP); on \
         a host, mount the hierarchy (`mount -t cgroup2 none /sys/fs/cgroup/unified`)"
    )]
    NoCgroup,
    /// `ip netns exec` hides the cgroup v2 hierarchy.
    #[error(
        "no cgroup of version 2 is visible: `ip netns exec {name}` hides the hierarchy, because \
         it mounts another /sys; run `nsenter --net=/run/netns/{name} ztunnel …` instead"
    )]
    IpNetns {
        /// The name of the network namespace.
        name: String,
    },
    /// The configured directory is not a cgroup.
    #[error("{} is not a cgroup v2 directory{}", path.display(), hint(source))]
    NotCgroup {
        /// The configured path.
        path: PathBuf,
        /// The error of opening it.
        source: io::Error,
    },
    /// No BPF file system could be mounted for the pins.
    #[error(
        "no BPF file system could be mounted at {}: {source}{}; or mount one by hand (`mount -t \
         bpf bpf /sys/fs/bpf`)",
        path.display(),
        hint(source)
    )]
    NoBpfFs {
        /// The mount point.
        path: PathBuf,
        /// The error of mount(2).
        source: io::Error,
    },
    /// The node's BPF file system is not visible in this container.
    #[error(
        "no BPF file system of the node at {}: pins in another one would end with this container, \
         and the capture of its pods with them; mount the node's /sys/fs/bpf (`ztunnel node prepare` \
         in an init container provides it), or set capture.by to programs or rules",
        path.display()
    )]
    NoNodeBpfFs {
        /// The directory of the pins.
        path: PathBuf,
    },
    /// A mount of this container would not be visible on the node.
    #[error(
        "a BPF file system mounted at {} would be visible in this container only: mount the node's \
         directory as a volume with mountPropagation Bidirectional, in a privileged container",
        path.display()
    )]
    NotPropagated {
        /// The mount point.
        path: PathBuf,
    },
    /// A directory or pin in the BPF file system could not be created, read or removed.
    #[error("{} in the BPF file system cannot be {action}: {source}{}", path.display(), hint(source))]
    Pin {
        /// The pin or directory.
        path: PathBuf,
        /// The attempted action, as a participle.
        action: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// Another user could change the pins, or hold the locks beside them.
    #[error("{} is not safe for the pins: {problem}; {remedy}", path.display())]
    UnsafeDirectory {
        /// The directory of the pins.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do, with the command.
        remedy: String,
    },
    /// The kernel did not load a program.
    #[error(
        "the kernel does not load the eBPF program {program} (Linux 6.1 or later is needed): \
         {source}{}\n{log}",
        hint(source)
    )]
    Program {
        /// The program's name.
        program: &'static str,
        /// The kernel's error.
        source: io::Error,
        /// The end of the verifier's log.
        log: String,
    },
    /// The embedded object is not that of this source.
    #[error("the embedded eBPF object was not built from this source: {problem}")]
    Object {
        /// What is missing in it.
        problem: String,
    },
    /// A program could not be attached.
    #[error(
        "the eBPF program {program} cannot be attached to {target}: {source}{}",
        hint(source)
    )]
    Attach {
        /// The program's name.
        program: &'static str,
        /// The cgroup or network namespace.
        target: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A map operation failed.
    #[error("eBPF map {map} cannot be {action}: {source}{}", hint(source))]
    Map {
        /// The map's name.
        map: String,
        /// The attempted action, as a participle.
        action: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// The proxy could not identify itself to the programs.
    #[error(
        "the eBPF programs did not recognise this process as the proxy: {source}{}",
        hint(source)
    )]
    Handshake {
        /// The error of the socket calls.
        source: io::Error,
    },
    /// The task that waits for another process's handover ended early.
    #[error(
        "the task that waits for another proxy of this node to hand over ended early: {problem}"
    )]
    Handover {
        /// Why it ended.
        problem: String,
    },
    /// A pod cannot be enrolled with the given addresses or listener.
    #[error("the network namespace {cookie} cannot be enrolled: {problem}")]
    Pod {
        /// The namespace.
        cookie: NetnsCookie,
        /// What is wrong with them.
        problem: &'static str,
    },
    /// The ring buffer of the programs' log could not be opened.
    #[error("the log of the eBPF programs cannot be read: {}", chain(source))]
    Log {
        /// aya-log's error.
        source: Box<aya_log::Error>,
    },
}

impl Error {
    /// Whether the environment does not allow the programs, like a container that sees only its own
    /// cgroup or may not mount: the node itself may be in order, and programs that an earlier
    /// container has pinned may be attached.
    #[must_use]
    pub fn is_restricted_environment(&self) -> bool {
        matches!(
            self,
            Self::NoCgroup | Self::IpNetns { .. } | Self::NoBpfFs { .. } | Self::NoNodeBpfFs { .. }
        )
    }

    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCgroup | Self::IpNetns { .. } => "no_cgroup",
            Self::NotCgroup { .. } => "not_a_cgroup",
            Self::NoBpfFs { .. } | Self::NoNodeBpfFs { .. } | Self::NotPropagated { .. } => {
                "no_bpf_fs"
            }
            Self::Pin { .. } | Self::UnsafeDirectory { .. } => "pin",
            Self::Program { .. } => "program",
            Self::Object { .. } => "object",
            Self::Attach { .. } => "attach",
            Self::Map { .. } => "map",
            Self::Handshake { .. } => "handshake",
            Self::Handover { .. } => "succession",
            Self::Pod { .. } => "pod",
            Self::Log { .. } => "log",
        }
    }

    /// Who caused it: always this node.
    #[must_use]
    pub fn fault(&self) -> &'static str {
        "us"
    }
}

/// What to do about errors whose own text does not say it.
fn hint(error: &io::Error) -> String {
    let text = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => return permission_hint(),
        Some(libc::ENOSYS) => " (this kernel was built without CONFIG_BPF_SYSCALL)",
        Some(libc::EINVAL) => " (the kernel may be too old: Linux 6.1 or later is needed)",
        Some(libc::E2BIG | libc::ENOSPC) => " (the map is full)",
        _ => "",
    };
    text.to_owned()
}

/// An error with its causes, because the top-level text of aya's errors says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
