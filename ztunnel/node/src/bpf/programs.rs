//! Attaches the loaded programs, or replaces the attached programs of an earlier proxy.
//!
//! A proxy that starts after another one finds its links pinned and puts its own programs into
//! them: no hook is ever without a program.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::Error;
use super::cgroup::Cgroup;
use super::object::{Object, kernel_has_process_id};
use super::pins::{self, Pins};
use super::sys::{self, AttachType};
use mesh::NetnsCookie;

/// The cgroup programs in the order of attaching: capture last, which needs the others.
const CGROUP: [(&str, AttachType); 4] = [
    (HOLD, AttachType::Egress),
    ("tcp_events", AttachType::SockOps),
    (CAPTURE, AttachType::Connect4),
    ("capture6", AttachType::Connect6),
];
/// The program that keeps captured packets in their pod. The version before has none.
const HOLD: &str = "hold";
/// The program that captures.
const CAPTURE: &str = "capture4";
/// The programs that show an application the address that it dialled.
const NAMES: [(&str, AttachType); 2] = [
    ("peername4", AttachType::PeerName4),
    ("peername6", AttachType::PeerName6),
];
/// Further name programs of the version before. They and its programs of [`NAMES`] are for sockets that
/// it has captured, and stay for as long as such a proxy is alive.
const OLD_NAMES: [&str; 2] = ["sockname4", "sockname6"];
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
pub(super) const ALL: [(&str, AttachType); 11] = {
    let [a, b, c, d] = CGROUP;
    let [e, f] = NAMES;
    let [g, h, i, j] = DNS;
    let inbound = (INBOUND, AttachType::SkLookup);
    [a, b, c, d, e, f, g, h, i, j, inbound]
};

/// Where programs are attached.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hooks<'a> {
    pub(super) pins: &'a Pins,
    pub(super) cgroup: &'a Cgroup,
    pub(super) links: &'a Links,
}

/// The links of this process, by their pins. They stay open: a program whose pin is removed stays
/// attached, and the pin can be made again.
#[derive(Debug, Default)]
pub(super) struct Links(Mutex<HashMap<PathBuf, OwnedFd>>);

impl Links {
    fn keep(&self, pin: &Path, link: OwnedFd) {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        links.insert(pin.to_path_buf(), link);
    }

    /// Keeps no link any more: what is not pinned is detached.
    pub(super) fn clear(&self) {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        links.clear();
    }

    /// The link of a pin; it is kept no longer.
    pub(super) fn take(&self, pin: &Path) -> Option<OwnedFd> {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        links.remove(pin)
    }
}

/// What was missing before a program was installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The program was not attached.
    Program,
    /// Its pin was gone.
    Pin,
}

/// A program or a map that was missing, and is there now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Installed {
    /// Its name.
    pub name: &'static str,
    /// What was missing.
    pub missing: Missing,
}

/// Attaches the cgroup programs that are always in use, or puts them into their pinned links. The name
/// programs of the version before stay.
pub(super) fn attach_cgroup(object: &Object, hooks: Hooks<'_>) -> Result<Vec<Installed>, Error> {
    let mut installed = attach(&CGROUP, object, hooks)?;
    if !has_old_names(hooks.pins) {
        installed.extend(attach(&NAMES, object, hooks)?);
    }
    Ok(installed)
}

/// Whether the programs of the version before may capture: they rewrite the destination, and work with
/// that version's programs only.
pub(super) fn rewriting_captures(pins: &Pins) -> bool {
    let was_downgraded = has_old_names(pins) && kernel_has_process_id();
    pins.link(CAPTURE).exists() && (!pins.link(HOLD).exists() || was_downgraded)
}

/// Whether this version's programs have captured before.
pub(super) fn has_captured(pins: &Pins) -> bool {
    pins.link(HOLD).exists()
}

/// Whether name programs of the version before are attached.
pub(super) fn has_old_names(pins: &Pins) -> bool {
    OLD_NAMES.iter().any(|name| pins.link(name).exists())
}

/// Replaces the name programs of the version before: none of its proxies is alive.
pub(super) fn replace_old_names(object: &Object, hooks: Hooks<'_>) -> Result<(), Error> {
    attach(&NAMES, object, hooks)?;
    for name in OLD_NAMES {
        pins::detach(&hooks.pins.link(name))?;
    }
    pins::remove(&hooks.pins.map("LISTENERS"))
}

/// As [`attach_cgroup`], for the DNS programs.
pub(super) fn attach_dns(object: &Object, hooks: Hooks<'_>) -> Result<Vec<Installed>, Error> {
    attach(&DNS, object, hooks)
}

/// Detaches the DNS programs of an earlier proxy, if any.
pub(super) fn detach_dns(hooks: Hooks<'_>) -> Result<(), Error> {
    for (name, _) in DNS.iter().rev() {
        let pin = hooks.pins.link(name);
        pins::detach(&pin)?;
        drop(hooks.links.take(&pin));
    }
    Ok(())
}

fn attach(
    programs: &[(&'static str, AttachType)],
    object: &Object,
    hooks: Hooks<'_>,
) -> Result<Vec<Installed>, Error> {
    let mut installed = Vec::new();
    for &(name, attach) in programs {
        let target = || format!("the cgroup {}", hooks.cgroup.path().display());
        let missing = Hook {
            program: name,
            attach,
            to: hooks.cgroup.directory(),
            pin: hooks.pins.link(name),
            target: &target,
        }
        .install(object.program(name)?, hooks.links)?;
        installed.extend(missing);
    }
    Ok(installed)
}

/// Attaches `inbound` to a pod's namespace, or puts it into the pinned link.
pub(super) fn attach_netns(
    program: BorrowedFd<'_>,
    netns: BorrowedFd<'_>,
    cookie: NetnsCookie,
    hooks: Hooks<'_>,
) -> Result<Option<Installed>, Error> {
    let target = || format!("the network namespace {cookie}");
    Hook {
        program: INBOUND,
        attach: AttachType::SkLookup,
        to: netns,
        pin: hooks.pins.netns(cookie),
        target: &target,
    }
    .install(program, hooks.links)
}

/// Puts the program into the pinned link of a namespace. False: the namespace no longer exists.
pub(super) fn replace_netns(
    program: BorrowedFd<'_>,
    pin: &Path,
    links: &Links,
) -> Result<bool, Error> {
    let replaced = sys::open_pin(pin).and_then(|link| {
        sys::replace(link.as_fd(), program)?;
        Ok(link)
    });
    match replaced {
        Ok(link) => {
            links.keep(pin, link);
            Ok(true)
        }
        // The kernel's error for a link whose namespace no longer exists.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        Err(source) => Err(Error::Attach {
            program: INBOUND,
            target: pin.display().to_string(),
            source,
        }),
    }
}

/// One place where a program is attached.
struct Hook<'a> {
    program: &'static str,
    attach: AttachType,
    /// The cgroup or the network namespace.
    to: BorrowedFd<'a>,
    pin: PathBuf,
    /// The place in words.
    target: &'a dyn Fn() -> String,
}

impl Hook<'_> {
    /// Puts the program into the link of the pin, or into the link of this process whose pin is gone;
    /// else attaches it anew. Returns what was missing.
    fn install(&self, program: BorrowedFd<'_>, links: &Links) -> Result<Option<Installed>, Error> {
        let found = |missing| {
            Some(Installed {
                name: self.program,
                missing,
            })
        };
        match sys::open_pin(&self.pin) {
            Ok(link) => {
                if self.replace(&link, program)? {
                    links.keep(&self.pin, link);
                    return Ok(None);
                }
                pins::remove(&self.pin)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(self.unpinned("opened", source)),
        }
        if let Some(link) = links.take(&self.pin) {
            // Whatever fails: this link may be all that keeps the program attached.
            let replaced = self.replace(&link, program);
            if !matches!(replaced, Ok(false)) {
                self.keep(link, links)?;
                return replaced.map(|_| found(Missing::Pin));
            }
        }
        let link = sys::attach(program, self.to, self.attach);
        self.keep(link.map_err(|source| self.failed(source))?, links)?;
        Ok(found(Missing::Program))
    }

    /// Puts the program into a link. False: the link is detached.
    fn replace(&self, link: &OwnedFd, program: BorrowedFd<'_>) -> Result<bool, Error> {
        match sys::replace(link.as_fd(), program) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// Pins a link. Without its pin it is kept, too: the program stays attached.
    fn keep(&self, link: OwnedFd, links: &Links) -> Result<(), Error> {
        let pinned = sys::pin(link.as_fd(), &self.pin);
        links.keep(&self.pin, link);
        pinned.map_err(|source| self.unpinned("created", source))
    }

    fn unpinned(&self, action: &'static str, source: std::io::Error) -> Error {
        Error::Pin {
            path: self.pin.clone(),
            action,
            source,
        }
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::Attach {
            program: self.program,
            target: (self.target)(),
            source,
        }
    }
}
