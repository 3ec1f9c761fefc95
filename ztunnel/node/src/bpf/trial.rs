//! Whether this kernel takes the programs and lets them be attached, tried out without leaving a
//! trace: maps of their own that hold nothing, links that end with their descriptors, no pin.
//! A program that finds no entry in its maps lets everything be.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use super::object::{Object, Owner, Settled, Speech};
use super::programs::{ALL, Cgroup, INBOUND};
use super::sys::{self, AttachType};
use super::{Error, pins};

/// The program that is attached for a moment; it answers `getsockname()`.
const HARMLESS: (&str, AttachType) = ("name4", AttachType::SockName4);

/// Every program, checked by the kernel's verifier and attached nowhere.
#[derive(Debug)]
pub struct Trial {
    object: Object,
}

impl Trial {
    /// Loads the programs.
    ///
    /// # Errors
    /// As [`Kernel::open`](super::Kernel::open).
    pub fn load() -> Result<Self, Error> {
        let settled = Settled::default();
        let object = Object::load(Owner::Private, &ALL, Speech::Silent, settled)?;
        Ok(Self { object })
    }

    /// How many programs there are.
    #[must_use]
    pub fn programs(&self) -> usize {
        ALL.len()
    }

    /// Attaches a program to the cgroup, the configured one or the hierarchy's root, and detaches
    /// it. Says which cgroup that was.
    ///
    /// # Errors
    /// When there is no such cgroup, or it takes no program.
    pub fn attach_cgroup(&self, configured: Option<&Path>) -> Result<PathBuf, Error> {
        let cgroup = Cgroup::open(configured)?;
        let (name, attach) = HARMLESS;
        self.attach(name, cgroup.directory(), attach, "the cgroup")?;
        Ok(cgroup.path().to_path_buf())
    }

    /// Attaches the inbound program to a network namespace, and detaches it.
    ///
    /// # Errors
    /// When the namespace takes no program.
    pub fn attach_netns(&self, netns: BorrowedFd<'_>) -> Result<(), Error> {
        let attach = AttachType::SkLookup;
        self.attach(INBOUND, netns, attach, "a network namespace")
    }

    fn attach(
        &self,
        name: &'static str,
        to: BorrowedFd<'_>,
        attach: AttachType,
        target: &str,
    ) -> Result<(), Error> {
        let link = sys::attach(self.object.program(name)?, to, attach);
        link.map(drop).map_err(|source| Error::Attach {
            program: name,
            target: target.to_owned(),
            source,
        })
    }
}

/// What is where pins are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinPlace {
    /// A BPF file system, and the pins can be made: below this directory.
    Ready(PathBuf),
    /// The pins of a proxy that runs or has run, with how many pods.
    InUse(usize),
    /// None yet: the proxy mounts one here.
    Missing(PathBuf),
}

impl PinPlace {
    /// Looks at the directory, and makes and removes one beside the pins.
    ///
    /// # Errors
    /// When nothing can be made there.
    pub fn of(directory: &Path) -> Result<Self, Error> {
        let place = pins::nearest(directory);
        if !pins::is_bpf_fs(place) {
            return Ok(Self::Missing(place.to_path_buf()));
        }
        // No dot: a BPF file system takes none.
        let own = place.join(format!("ztunnel_doctor_{}", std::process::id()));
        let made = fs::create_dir(&own).and_then(|()| fs::remove_dir(&own));
        made.map_err(|source| Error::Pin {
            path: own,
            action: "created",
            source,
        })?;
        let pods = pins::enrolled_below(directory);
        Ok(pods.map_or_else(|| Self::Ready(place.to_path_buf()), Self::InUse))
    }
}
