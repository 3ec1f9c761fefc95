//! Attaches the loaded programs, or replaces the attached programs of an earlier proxy.
//!
//! A proxy that starts after another one finds its links pinned and puts its own programs into
//! them: no hook is ever without a program.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use super::Error;
use super::cgroup::Cgroup;
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
        let target = || format!("the cgroup {}", cgroup.path().display());
        install(
            name,
            object.program(name)?,
            cgroup.directory(),
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
