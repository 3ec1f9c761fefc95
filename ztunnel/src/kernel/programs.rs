//! From the embedded object to programs at work: load, attach or replace, keep.
//!
//! A proxy that starts where another one ran finds its links pinned. It puts its own programs
//! into them; at no moment is a hook without a program.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::{CgroupSockAddr, Program, ProgramError, SkLookup, SockOps};
use aya::{Ebpf, EbpfLoader};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::pins::{self, Pins};
use super::sys::{self, AttachType};
use super::{Error, NetnsCookie};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ztunnel-ebpf"));

/// The cgroup programs, in the order in which they are attached: what answers an application's
/// questions, then what tells the proxy, then what captures.
const CGROUP: [(&str, AttachType); 7] = [
    ("peer4", AttachType::PeerName4),
    ("peer6", AttachType::PeerName6),
    ("name4", AttachType::SockName4),
    ("name6", AttachType::SockName6),
    ("established", AttachType::SockOps),
    ("capture4", AttachType::Connect4),
    ("capture6", AttachType::Connect6),
];
/// The program of the pods' namespaces.
const INBOUND: &str = "inbound";
/// The maps that outlive a proxy. The log's ring is not among them: each proxy has its own.
const PINNED: [&str; 8] = [
    "CONFIG",
    "PODS",
    "ADDRESSES",
    "LISTENERS",
    "ORIGINS",
    "EXEMPT_PORTS",
    "EXEMPT_NETS",
    "SOCKETS",
];

/// aya's reader of the programs' records, which passes them to the `log` crate.
pub(super) type Logger = aya_log::EbpfLogger<&'static dyn log::Log>;

/// Whether the programs can write to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    /// They have no code for it.
    Silent,
    /// They can, and do while the settings ask for it.
    Debug,
}

/// The loaded object.
pub(super) struct Object {
    ebpf: Ebpf,
}

impl Object {
    /// Loads maps and programs; maps that are pinned are taken over.
    ///
    /// Silent programs are the rule: what they would say is then unreachable for the verifier,
    /// which drops it, and loading takes a tenth of the time.
    pub(super) fn load(pins: &Pins, speech: Speech) -> Result<Self, Error> {
        let knows_process = u8::from(kernel_knows_process());
        let level = match speech {
            Speech::Silent => 0,
            Speech::Debug => aya_log::Level::Debug as u8,
        };
        let mut loader = EbpfLoader::new();
        // Nothing is relocated against the kernel's own types, and reading them takes long.
        loader.btf(None);
        loader.override_global("KNOWS_PROCESS", &knows_process, true);
        loader.override_global(aya_log::LEVEL, &level, true);
        for name in PINNED {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader.load(OBJECT).map_err(|source| Error::Load {
            source: Box::new(source),
        })?;
        for (name, _) in CGROUP {
            load(&mut ebpf, name)?;
        }
        load(&mut ebpf, INBOUND)?;
        Ok(Self { ebpf })
    }

    /// A map's own descriptor.
    pub(super) fn map(&self, name: &'static str) -> Result<OwnedFd, Error> {
        use aya::maps::Map;
        let data = match self.ebpf.map(name) {
            Some(
                Map::Array(data)
                | Map::HashMap(data)
                | Map::LruHashMap(data)
                | Map::LpmTrie(data)
                | Map::SockHash(data)
                | Map::SkStorage(data),
            ) => data,
            _ => return Err(Error::Object { name }),
        };
        clone(data.fd().as_fd()).map_err(|source| Error::Map {
            map: name,
            action: "opened",
            source,
        })
    }

    /// The program of the pods' namespaces: a descriptor that outlives this object.
    pub(super) fn inbound(&self) -> Result<OwnedFd, Error> {
        let program = program(&self.ebpf, INBOUND)?;
        let fd = program.fd().map_err(|source| Error::Program {
            program: INBOUND,
            source: Box::new(source),
        })?;
        clone(fd.as_fd()).map_err(|source| Error::Map {
            map: INBOUND,
            action: "opened",
            source,
        })
    }

    /// The reader of what the programs say.
    pub(super) fn logger(&mut self) -> Result<Logger, Error> {
        aya_log::EbpfLogger::init(&mut self.ebpf).map_err(|source| Error::Log {
            source: Box::new(source),
        })
    }

    /// Attaches every cgroup program, or puts it into the link that is pinned for it.
    pub(super) fn attach_cgroup(&self, pins: &Pins, cgroup: &Cgroup) -> Result<(), Error> {
        for (name, attach) in CGROUP {
            let program = program(&self.ebpf, name)?.fd();
            let program = program.map_err(|source| Error::Program {
                program: name,
                source: Box::new(source),
            })?;
            let target = || format!("the cgroup {}", cgroup.path.display());
            install(
                name,
                program.as_fd(),
                cgroup.directory.as_fd(),
                attach,
                &pins.link(name),
                target,
            )?;
        }
        Ok(())
    }
}

/// Attaches `inbound` to a pod's namespace, or puts it into the link that is pinned for it.
pub(super) fn attach_netns(
    program: BorrowedFd<'_>,
    netns: BorrowedFd<'_>,
    cookie: NetnsCookie,
    pins: &Pins,
) -> Result<(), Error> {
    let target = || format!("the network namespace {cookie}");
    let pin = pins.netns(cookie);
    install(INBOUND, program, netns, AttachType::SkLookup, &pin, target)
}

/// Whether a namespace still exists whose link is pinned; its link then has the new program.
pub(super) fn renew_netns(program: BorrowedFd<'_>, pin: &Path) -> Result<bool, Error> {
    match sys::open_pin(pin).and_then(|link| sys::replace(link.as_fd(), program)) {
        Ok(()) => Ok(true),
        // The kernel's word for a link whose namespace is gone.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        Err(source) => Err(Error::Attach {
            program: INBOUND,
            target: pin.display().to_string(),
            source,
        }),
    }
}

fn install(
    name: &'static str,
    program: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    attach: AttachType,
    pin: &Path,
    target: impl Fn() -> String,
) -> Result<(), Error> {
    let failed = |source| Error::Attach {
        program: name,
        target: target(),
        source,
    };
    if let Ok(link) = sys::open_pin(pin) {
        match sys::replace(link.as_fd(), program) {
            Ok(()) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => pins::remove(pin)?,
            Err(source) => return Err(failed(source)),
        }
    }
    let link = sys::attach(program, to, attach).map_err(failed)?;
    sys::pin(link.as_fd(), pin).map_err(|source| Error::Pin {
        path: pin.to_path_buf(),
        action: "created",
        source,
    })
}

fn clone(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    fd.try_clone_to_owned()
}

fn program<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<&'a Program, Error> {
    ebpf.program(name).ok_or(Error::Object { name })
}

fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<(), Error> {
    let program = ebpf.program_mut(name).ok_or(Error::Object { name })?;
    let result: Result<(), ProgramError> = match program {
        Program::CgroupSockAddr(program) => CgroupSockAddr::load(program),
        Program::SockOps(program) => SockOps::load(program),
        Program::SkLookup(program) => SkLookup::load(program),
        _ => return Err(Error::Object { name }),
    };
    result.map_err(|source| Error::Program {
        program: name,
        source: Box::new(source),
    })
}

/// Linux 6.10 lets programs of every type ask for the process id.
fn kernel_knows_process() -> bool {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .is_ok_and(|release| is_at_least(&release, 6, 10))
}

fn is_at_least(release: &str, major: u32, minor: u32) -> bool {
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    found >= (major, minor)
}

/// The cgroup whose processes, and those of all cgroups below it, are seen.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    directory: File,
}

impl Cgroup {
    /// The configured cgroup, or the root of the v2 hierarchy wherever it is mounted.
    pub(super) fn open(configured: Option<&Path>) -> Result<Self, Error> {
        let path = match configured {
            Some(path) => path.to_path_buf(),
            None => fs::read_to_string("/proc/self/mounts")
                .ok()
                .and_then(|mounts| find_root(&mounts, is_root))
                .ok_or(Error::NoCgroup)?,
        };
        match File::open(&path) {
            Ok(directory) if is_cgroup2(&path) => Ok(Self { path, directory }),
            Ok(_) => Err(Error::NotCgroup {
                path,
                source: io::Error::from(io::ErrorKind::NotADirectory),
            }),
            Err(source) => Err(Error::NotCgroup { path, source }),
        }
    }
}

fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Only the true root has no `cgroup.events`: in a cgroup namespace, the mount's root has one.
fn is_root(path: &Path) -> bool {
    path.join("cgroup.procs").exists() && !path.join("cgroup.events").exists()
}

/// The first mount of type cgroup2 that shows the hierarchy's root.
fn find_root(mounts: &str, is_root: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(place.replace("\\040", " ")))
        })
        .find(|path| is_root(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        for release in ["6.10.0", "6.18.44-fc-v445", "7.0", "10.1-rc1"] {
            assert!(is_at_least(release, 6, 10), "{release}");
        }
        for release in ["6.9.12", "5.15.0-91-generic", "6", "", "what"] {
            assert!(!is_at_least(release, 6, 10), "{release}");
        }
    }

    #[test]
    fn the_root_of_the_hierarchy_is_found_wherever_it_is_mounted() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let pure = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        let odd = "cgroup2 /run/a\\040b cgroup2 rw 0 0\n";
        let all = |_: &Path| true;
        let found = |mounts| find_root(mounts, all);
        assert_eq!(found(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(found(pure), Some("/sys/fs/cgroup".into()));
        assert_eq!(found(odd), Some("/run/a b".into()));
        assert_eq!(found("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn part_of_a_hierarchy_is_not_its_root() {
        let pure = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(find_root(pure, |_| false), None);
    }
}
