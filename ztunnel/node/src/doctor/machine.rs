//! The machine, and the permissions of this process on it.

use std::fs;
use std::time::SystemTime;

use nix::sys::resource::{Resource, getrlimit};

use super::Check;
use crate::bpf;

/// The oldest kernel with every required system call.
const OLDEST: (u32, u32) = (5, 15);
/// With a lower limit of open files a node is full at a few thousand connections.
const FILES: u64 = 65_536;

pub(super) fn examine() -> Vec<Check> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    vec![
        version(&bpf::release().unwrap_or_default()),
        capabilities(effective(&status)),
        files(limit),
        clock(SystemTime::now(), built()),
    ]
}

fn version(release: &str) -> Check {
    let name = "machine.kernel";
    let (major, minor) = OLDEST;
    if bpf::is_at_least(release, major, minor) {
        return Check::ok(name, format!("Linux {release}"));
    }
    let detail = match release {
        "" => "the version of this kernel cannot be read".to_owned(),
        _ => format!("Linux {release} is older than {major}.{minor}"),
    };
    let remedy = format!("run the node on Linux {major}.{minor} or later");
    Check::fail(name, detail, remedy)
}

/// A capability: its bit in linux/capability.h, and what the proxy needs it for.
struct Capability {
    bit: u32,
    name: &'static str,
    purpose: &'static str,
}

const NEEDED: [Capability; 3] = [
    Capability {
        bit: 12,
        name: "CAP_NET_ADMIN",
        purpose: "attaching programs, routes, marked and transparent sockets",
    },
    Capability {
        bit: 21,
        name: "CAP_SYS_ADMIN",
        purpose: "entering the pods' network namespaces",
    },
    Capability {
        bit: 39,
        name: "CAP_BPF",
        purpose: "loading programs",
    },
];

/// The effective capabilities in the text of /proc/self/status.
fn effective(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or(0)
}

fn capabilities(set: u64) -> Check {
    let name = "machine.capabilities";
    let has = |capability: &Capability| set & (1 << capability.bit) != 0;
    // CAP_SYS_ADMIN includes CAP_BPF.
    let granted = |needed: &Capability| has(needed) || (needed.bit == 39 && has(&NEEDED[1]));
    let missing: Vec<&Capability> = NEEDED.iter().filter(|needed| !granted(needed)).collect();
    if missing.is_empty() {
        let names: Vec<&str> = NEEDED.iter().map(|needed| needed.name).collect();
        return Check::ok(name, names.join(", "));
    }
    let list = |text: fn(&Capability) -> String| {
        missing
            .iter()
            .map(|one| text(one))
            .collect::<Vec<_>>()
            .join(", ")
    };
    Check::fail(
        name,
        format!(
            "missing: {}",
            list(|one| format!("{} ({})", one.name, one.purpose))
        ),
        format!("run as root, or grant {}", list(|one| one.name.to_owned())),
    )
}

fn files(hard: u64) -> Check {
    let name = "machine.open_files";
    let detail = format!("this process may open {hard} files; a connection uses two");
    if hard >= FILES {
        Check::ok(name, detail)
    } else {
        let remedy = format!("raise the hard limit to {FILES} or more (LimitNOFILE, ulimit -Hn)");
        Check::warn(name, detail, remedy)
    }
}

/// When the file of this program was written.
fn built() -> Option<SystemTime> {
    let program = fs::metadata("/proc/self/exe").ok()?;
    program.modified().ok()
}

/// Certificates are valid for a day, so a wrong clock breaks every tunnel. A clock that is earlier than
/// this program's file is certainly wrong.
fn clock(now: SystemTime, built: Option<SystemTime>) -> Check {
    let name = "machine.clock";
    let shown = humantime::format_rfc3339_seconds(now);
    if built.is_some_and(|built| now < built) {
        let detail = format!("the clock shows {shown}, which is before this program was installed");
        return Check::fail(name, detail, "set the clock, and synchronize it with NTP");
    }
    Check::ok(
        name,
        format!("the clock shows {shown}, which is after this program was installed"),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::doctor::Status;

    #[test]
    fn an_old_kernel_fails() {
        for (release, expected) in [
            ("5.15.0-91-generic", Status::Ok),
            ("6.18.44", Status::Ok),
            ("5.14.21", Status::Fail),
            ("4.19", Status::Fail),
            ("", Status::Fail),
        ] {
            assert_eq!(version(release).status, expected, "{release}");
        }
    }

    #[test]
    fn capabilities_are_read_and_missing_ones_named() {
        assert_eq!(
            effective("Name:\tx\nCapEff:\t000001ffffffffff\n"),
            (1 << 41) - 1
        );
        assert_eq!(effective("CapPrm:\t01\n"), 0);
        assert_eq!(capabilities((1 << 41) - 1).status, Status::Ok);
        let without_bpf = capabilities(1 << 12 | 1 << 21);
        assert_eq!(without_bpf.status, Status::Ok, "CAP_SYS_ADMIN includes it");
        let check = capabilities(1 << 12 | 1 << 39);
        assert_eq!(check.status, Status::Fail);
        assert_eq!(check.remedy.unwrap(), "run as root, or grant CAP_SYS_ADMIN");
        let check = capabilities(0);
        assert!(
            check.detail.contains("CAP_BPF (loading programs)"),
            "{}",
            check.detail
        );
    }

    #[test]
    fn few_files_are_a_warning() {
        assert_eq!(files(1 << 20).status, Status::Ok);
        assert_eq!(files(1024).status, Status::Warn);
    }

    #[test]
    fn a_clock_behind_the_program_fails() {
        let built = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let later = built + Duration::from_secs(1);
        assert_eq!(clock(later, Some(built)).status, Status::Ok);
        assert_eq!(clock(built, Some(later)).status, Status::Fail);
        assert_eq!(clock(built, None).status, Status::Ok);
    }
}
