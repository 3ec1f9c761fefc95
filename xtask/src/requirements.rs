//! The requirements of the chores, and one message that lists all that are not met.

use std::env;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

/// The oldest kernel on which the proxy is tested.
const KERNEL: (u32, u32) = (6, 1);

struct Requirement {
    met: fn() -> bool,
    missing: &'static str,
}

const BUILD: [Requirement; 2] = [
    Requirement {
        met: || program("rustup"),
        missing: "rustup, which installs the pinned compiler: https://rustup.rs",
    },
    Requirement {
        met: || ["cc", "gcc", "clang"].into_iter().any(program),
        missing: "a C compiler (Debian: apt-get install gcc libc6-dev)",
    },
];

const FUZZ: [Requirement; 1] = [Requirement {
    met: || ["c++", "g++", "clang++"].into_iter().any(program),
    missing: "a C++ compiler, which libFuzzer needs (Debian: apt-get install g++)",
}];

const RUN: [Requirement; 8] = [
    Requirement {
        met: is_root,
        missing: "root: namespaces, links and kernel programs need it (sudo -E cargo xtask …)",
    },
    Requirement {
        met: || kernel_version().is_none_or(|version| version >= KERNEL),
        missing: "Linux 6.1 or later",
    },
    Requirement {
        met: || {
            line_in("/proc/mounts", |line| {
                line.split(' ').nth(2) == Some("cgroup2")
            })
        },
        missing: "a mounted cgroup v2 hierarchy (mount -t cgroup2 none /sys/fs/cgroup/unified)",
    },
    Requirement {
        met: || Path::new("/sys/kernel/btf/vmlinux").exists(),
        missing: "kernel type information, /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)",
    },
    Requirement {
        met: || {
            line_in("/proc/filesystems", |line| {
                line.split_whitespace().last() == Some("bpf")
            })
        },
        missing: "the BPF file system (CONFIG_BPF_SYSCALL)",
    },
    Requirement {
        met: || Path::new("/proc/self/ns/net").exists(),
        missing: "network namespaces (CONFIG_NET_NS)",
    },
    Requirement {
        met: || Path::new("/proc/net/if_inet6").exists(),
        missing: "IPv6 (CONFIG_IPV6, and not ipv6.disable=1)",
    },
    Requirement {
        met: || Path::new("/proc/sys/net/ipv4/tcp_fwmark_accept").exists(),
        missing: "net.ipv4.tcp_fwmark_accept, which delivery with the client's address needs",
    },
];

/// Additional requirements of the end-to-end tests.
const E2E: [Requirement; 1] = [Requirement {
    met: || RULES.into_iter().all(program),
    missing: "iptables, nft or ip, for the tests with Istio's rules (Debian: apt-get install iptables nftables iproute2)",
}];

/// The programs that install the rules of Istio's node agent.
const RULES: [&str; 6] = [
    "iptables-legacy-restore",
    "ip6tables-legacy-restore",
    "iptables-nft-restore",
    "ip6tables-nft-restore",
    "nft",
    "ip",
];

/// Checks the requirements of building.
pub(crate) fn for_building() -> Result<()> {
    check(BUILD.iter())
}

/// Checks the requirements of building the fuzz targets.
pub(crate) fn for_fuzzing() -> Result<()> {
    check(BUILD.iter().chain(&FUZZ))
}

/// Checks the requirements of building and running simulated nodes.
pub(crate) fn for_running() -> Result<()> {
    check(BUILD.iter().chain(&RUN))
}

/// Checks the requirements of the end-to-end tests.
pub(crate) fn for_e2e() -> Result<()> {
    check(BUILD.iter().chain(&RUN).chain(&E2E))
}

fn check<'a>(requirements: impl Iterator<Item = &'a Requirement>) -> Result<()> {
    let missing: Vec<_> = requirements
        .filter(|requirement| !(requirement.met)())
        .map(|requirement| format!("\n  - {}", requirement.missing))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "requirements that this machine does not meet:{}",
        missing.concat()
    )
}

fn program(name: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|directory| directory.join(name).is_file()))
}

/// The effective user (second number of `Uid:` in `/proc/self/status`, proc(5)).
fn is_root() -> bool {
    line_in("/proc/self/status", |line| {
        line.strip_prefix("Uid:")
            .and_then(|ids| ids.split_whitespace().nth(1))
            == Some("0")
    })
}

fn kernel_version() -> Option<(u32, u32)> {
    version(&fs::read_to_string("/proc/sys/kernel/osrelease").ok()?)
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn line_in(path: &str, wanted: impl Fn(&str) -> bool) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.lines().any(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_compared_as_numbers() {
        assert_eq!(version("6.18.44-generic"), Some((6, 18)));
        assert_eq!(version("5.4-rc1"), Some((5, 4)));
        assert_eq!(version("unknown"), None);
        assert!(version("5.9.0").unwrap() < KERNEL);
    }

    #[test]
    fn all_unmet_requirements_are_in_one_message() {
        let requirements = [
            Requirement {
                met: || false,
                missing: "the first",
            },
            Requirement {
                met: || true,
                missing: "the second",
            },
            Requirement {
                met: || false,
                missing: "the third",
            },
        ];
        let message = check(requirements.iter()).unwrap_err().to_string();
        assert_eq!(
            message,
            "requirements that this machine does not meet:\n  - the first\n  - the third"
        );
    }
}
