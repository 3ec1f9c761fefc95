//! What the kernel asks of a process that uses eBPF: capabilities, and before Linux 5.11 a limit on
//! locked memory.

use std::fs;

use nix::sys::resource::{Resource, setrlimit};

/// A capability: its bit in linux/capability.h, and what the proxy needs it for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// The bit.
    pub bit: u32,
    /// The name.
    pub name: &'static str,
    /// What needs it.
    pub purpose: &'static str,
}

const SYS_ADMIN: Capability = Capability {
    bit: 21,
    name: "CAP_SYS_ADMIN",
    purpose: "entering the pods' network namespaces",
};
const BPF: Capability = Capability {
    bit: 39,
    name: "CAP_BPF",
    purpose: "loading programs",
};

/// The capabilities that the proxy needs.
pub const NEEDED: [Capability; 3] = [
    Capability {
        bit: 12,
        name: "CAP_NET_ADMIN",
        purpose: "attaching programs, routes, marked and transparent sockets",
    },
    SYS_ADMIN,
    BPF,
];

/// The effective capabilities of this process, as a set of bits.
#[must_use]
pub fn effective_capabilities() -> u64 {
    effective(&fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// The effective capabilities in the text of /proc/self/status.
fn effective(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or(0)
}

/// Those of the needed capabilities that a set lacks. CAP_SYS_ADMIN includes CAP_BPF.
pub fn missing_capabilities(set: u64) -> impl Iterator<Item = Capability> {
    let has = move |capability: Capability| set & (1 << capability.bit) != 0;
    NEEDED
        .into_iter()
        .filter(move |needed| !(has(*needed) || *needed == BPF && has(SYS_ADMIN)))
}

/// What to do about an operation that the kernel has not permitted.
pub(super) fn permission_hint() -> String {
    hint(effective_capabilities())
}

fn hint(capabilities: u64) -> String {
    let missing: Vec<&str> = missing_capabilities(capabilities)
        .map(|one| one.name)
        .collect();
    if missing.is_empty() {
        return " (the process has the capabilities: a security module (AppArmor, SELinux), a seccomp \
                filter or kernel lockdown forbids it)"
            .to_owned();
    }
    format!(
        " (the process lacks {}; run it as root, or grant that)",
        missing.join(", ")
    )
}

/// Removes the limit on locked memory, to which kernels before 5.11 count maps and programs. Without
/// CAP_SYS_RESOURCE the limit stays.
pub(super) fn raise_locked_memory_limit() {
    let unlimited = libc::RLIM_INFINITY;
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, unlimited, unlimited) {
        tracing::debug!(%error, "cannot remove the limit on locked memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(set: u64) -> Vec<&'static str> {
        missing_capabilities(set).map(|one| one.name).collect()
    }

    #[test]
    fn capabilities_are_read_and_missing_ones_named() {
        assert_eq!(
            effective("Name:\tx\nCapEff:\t000001ffffffffff\n"),
            (1 << 41) - 1
        );
        assert_eq!(effective("CapPrm:\t01\n"), 0);
        assert!(missing((1 << 41) - 1).is_empty());
        assert!(
            missing(1 << 12 | 1 << 21).is_empty(),
            "CAP_SYS_ADMIN includes CAP_BPF"
        );
        assert_eq!(missing(1 << 12 | 1 << 39), ["CAP_SYS_ADMIN"]);
        assert_eq!(missing(0).len(), NEEDED.len());
    }

    #[test]
    fn the_hint_names_what_is_missing_and_does_not_send_root_to_root() {
        let lacking = hint(1 << 12);
        assert!(
            lacking.contains("lacks CAP_SYS_ADMIN, CAP_BPF"),
            "{lacking}"
        );
        let root = hint((1 << 41) - 1);
        assert!(
            !root.contains("run it as root") && root.contains("AppArmor"),
            "{root}"
        );
    }
}
