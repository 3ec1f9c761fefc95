//! The machine, and the permissions of this process on it.

use std::fs;
use std::time::SystemTime;

use nix::sys::resource::{Resource, getrlimit};

use super::Check;
use crate::bpf::{self, Capability};

/// The oldest kernel on which the proxy is tested. `ingress_ifindex` in `sk_lookup` programs came
/// with 5.17.
const OLDEST: (u32, u32) = (6, 1);
/// With a lower limit of open files a node is full at a few thousand connections.
const FILES: u64 = 65_536;

pub(super) fn examine() -> Vec<Check> {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    vec![
        version(&bpf::release().unwrap_or_default()),
        capabilities(bpf::effective_capabilities()),
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
        _ => format!(
            "Linux {release} is older than {major}.{minor}, the oldest version on which the proxy is \
             tested"
        ),
    };
    let remedy = format!("run the node on Linux {major}.{minor} or later");
    Check::fail(name, detail, remedy)
}

fn capabilities(set: u64) -> Check {
    let name = "machine.capabilities";
    let missing: Vec<Capability> = bpf::missing_capabilities(set).collect();
    if missing.is_empty() {
        let names: Vec<&str> = bpf::NEEDED.iter().map(|needed| needed.name).collect();
        return Check::ok(name, names.join(", "));
    }
    let list = |text: fn(&Capability) -> String| {
        let texts: Vec<String> = missing.iter().map(text).collect();
        texts.join(", ")
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
            ("6.1.0-40-amd64", Status::Ok),
            ("6.18.44", Status::Ok),
            ("5.15.0-91-generic", Status::Fail),
            ("4.19", Status::Fail),
            ("", Status::Fail),
        ] {
            assert_eq!(version(release).status, expected, "{release}");
        }
    }

    #[test]
    fn missing_capabilities_are_named_with_their_purpose() {
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
