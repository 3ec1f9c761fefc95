//! What can go wrong between the proxy and the kernel, and what its operator can do about it.

use std::io;
use std::path::PathBuf;

use mesh::NetnsCookie;

/// Why the kernel programs could not be set up or used. All of it is the node's own doing: no
/// peer and no application causes it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cgroup v2 hierarchy is mounted, or only part of it can be seen.
    #[error(
        "no root of a cgroup v2 hierarchy among the mounts: mount one (`mount -t cgroup2 none \
         /sys/fs/cgroup/unified`); in a container, mount the host's /sys/fs/cgroup and name it in \
         capture.cgroup"
    )]
    NoCgroup,
    /// The configured cgroup is none.
    #[error("{} is not a cgroup v2 directory{}", path.display(), hint(source))]
    NotCgroup {
        /// The configured path.
        path: PathBuf,
        /// What opening it said.
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
        /// Where one was wanted.
        path: PathBuf,
        /// What mount(2) said.
        source: io::Error,
    },
    /// A directory or pin in the BPF file system could not be made, read or removed.
    #[error("{} in the BPF file system cannot be {action}: {source}{}", path.display(), hint(source))]
    Pin {
        /// The pin or directory.
        path: PathBuf,
        /// What was tried, as a participle.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel's verifier did not take a program.
    #[error(
        "this kernel does not take the eBPF program {program} (it needs Linux 5.15 or later, \
         CAP_BPF and CAP_NET_ADMIN): {source}\n{log}"
    )]
    Program {
        /// The program's name.
        program: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// The end of the verifier's log.
        log: String,
    },
    /// The object cannot be read: it is not the one of this source.
    #[error("the embedded eBPF object was not built from this source: {problem}")]
    Object {
        /// What is wrong with it.
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
        /// What the kernel said.
        source: io::Error,
    },
    /// A map operation failed.
    #[error("eBPF map {map} cannot be {action}: {source}{}", hint(source))]
    Map {
        /// The map's name.
        map: String,
        /// What was tried, as a participle.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The proxy could not make itself known to the programs.
    #[error(
        "the eBPF programs did not recognise this process as the proxy: {source}{}",
        hint(source)
    )]
    Handshake {
        /// What the socket calls said.
        source: io::Error,
    },
    /// Waiting for another process of this node to hand over ended early.
    #[error("waiting for another process of this node ended early: {problem}")]
    Handover {
        /// What happened.
        problem: String,
    },
    /// A pod cannot be enrolled as it was described.
    #[error("the network namespace {cookie} cannot be enrolled: {problem}")]
    Pod {
        /// The namespace.
        cookie: NetnsCookie,
        /// What is wrong with the description.
        problem: &'static str,
    },
    /// The programs' log could not be opened.
    #[error("the log of the eBPF programs cannot be read: {}", chain(source))]
    Log {
        /// aya-log's error.
        source: Box<aya_log::Error>,
    },
}

impl Error {
    /// Whether the place is not made for the programs, as a container is that sees only its own
    /// cgroup or may not mount: nothing is wrong with the node. What an earlier container has pinned
    /// may be at work all the same.
    #[must_use]
    pub fn is_of_the_place(&self) -> bool {
        matches!(self, Self::NoCgroup | Self::NoBpfFs { .. })
    }

    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCgroup => "no_cgroup",
            Self::NotCgroup { .. } => "not_a_cgroup",
            Self::NoBpfFs { .. } => "no_bpf_fs",
            Self::Pin { .. } => "pin",
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

    /// Whose fault it was: always this node's own.
    #[must_use]
    pub fn fault(&self) -> &'static str {
        "us"
    }
}

/// The way out of the errors that mean something else than they say.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            " (run it as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN)"
        }
        Some(libc::ENOSYS) => " (this kernel was built without CONFIG_BPF_SYSCALL)",
        Some(libc::EINVAL) => " (the kernel may be too old: Linux 5.15 or later is needed)",
        Some(libc::E2BIG | libc::ENOSPC) => " (the map is full)",
        _ => "",
    }
}

/// An error with its causes: aya's say little at the top.
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
