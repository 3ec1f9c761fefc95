//! Attaches the loaded programs, or replaces the attached programs of an earlier proxy.
//!
//! A proxy that starts after another one finds its links pinned and puts its own programs into
//! them: no hook is ever without a program.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::Error;
use super::ip_netns::ip_netns_exec;
use super::object::Object;
use super::pins::{self, Pins};
use super::sys::{self, AttachType};
use mesh::NetnsCookie;

/// The cgroup programs in the order of attaching: names first, then TCP events, and capture last,
/// which needs the others.
const CGROUP: [(&str, AttachType); 7] = [
    ("peername4", AttachType::PeerName4),
    ("peername6", AttachType::PeerName6),
    ("sockname4", AttachType::SockName4),
    ("sockname6", AttachType::SockName6),
    ("tcp_events", AttachType::SockOps),
    ("capture4", AttachType::Connect4),
    ("capture6", AttachType::Connect6),
];
/// The cgroup programs of DNS over UDP in the order of attaching: replies first, then queries. They
/// run for every datagram of the machine, so they are attached only if a pod uses DNS capture.
const DNS: [(&str, AttachType); 4] = [
    ("reply4", AttachType::ReceiveMessage4),
    ("reply6", AttachType::ReceiveMessage6),
    ("query4", AttachType::SendMessage4),
    ("query6", AttachType::SendMessage6),
];
/// The program that is attached to the pods' namespaces.
pub(super) const INBOUND: &str = "inbound";
/// The program of joined connections, loaded only if they are enabled.
pub(super) const REDIRECT: (&str, AttachType) = ("redirect", AttachType::SkMsgVerdict);
/// The programs that are loaded at start.
pub(super) const ALL: [(&str, AttachType); 12] = {
    let [a, b, c, d, e, f, g] = CGROUP;
    let [h, i, j, k] = DNS;
    let inbound = (INBOUND, AttachType::SkLookup);
    [a, b, c, d, e, f, g, h, i, j, k, inbound]
};

/// Attaches the cgroup programs that are always in use, or puts them into their pinned links.
pub(super) fn attach_cgroup(object: &Object, pins: &Pins, cgroup: &Cgroup) -> Result<(), Error> {
    attach(&CGROUP, object, pins, cgroup)
}

/// As [`attach_cgroup`], for the DNS programs.
pub(super) fn attach_dns(object: &Object, pins: &Pins, cgroup: &Cgroup) -> Result<(), Error> {
    attach(&DNS, object, pins, cgroup)
}

/// Detaches the DNS programs of an earlier proxy, if any.
pub(super) fn detach_dns(pins: &Pins) -> Result<(), Error> {
    for (name, _) in DNS.iter().rev() {
        pins::detach(&pins.link(name))?;
    }
    Ok(())
}

fn attach(
    programs: &[(&'static str, AttachType)],
    object: &Object,
    pins: &Pins,
    cgroup: &Cgroup,
) -> Result<(), Error> {
    for &(name, attach) in programs {
        let target = || format!("the cgroup {}", cgroup.path.display());
        install(
            name,
            object.program(name)?,
            cgroup.directory.as_fd(),
            attach,
            &pins.link(name),
            target,
        )?;
    }
    Ok(())
}

/// Attaches `inbound` to a pod's namespace, or puts it into the pinned link.
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

/// Puts the program into the pinned link of a namespace. False: the namespace no longer exists.
pub(super) fn replace_netns(program: BorrowedFd<'_>, pin: &Path) -> Result<bool, Error> {
    match sys::open_pin(pin).and_then(|link| sys::replace(link.as_fd(), program)) {
        Ok(()) => Ok(true),
        // The kernel's error for a link whose namespace no longer exists.
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

/// The cgroup whose sockets, and those of all cgroups below it, run the programs.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    directory: File,
}

impl Cgroup {
    /// Opens the configured cgroup, or the root of the v2 hierarchy, wherever it is mounted.
    pub(super) fn open(configured: Option<&Path>) -> Result<Self, Error> {
        let path = match configured {
            Some(path) => path.to_path_buf(),
            None => fs::read_to_string("/proc/self/mounts")
                .ok()
                .and_then(|mounts| find_root(&mounts, is_root))
                .ok_or_else(|| match ip_netns_exec() {
                    Some(name) => Error::IpNetns { name },
                    None => Error::NoCgroup,
                })?,
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

impl Cgroup {
    /// The cgroup's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The cgroup's directory.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Only the real root has no `cgroup.events`: in a cgroup namespace, the root of the mount has one.
fn is_root(path: &Path) -> bool {
    path.join("cgroup.procs").exists() && !path.join("cgroup.events").exists()
}

/// The first mount of type cgroup2 that shows the root of the hierarchy.
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
