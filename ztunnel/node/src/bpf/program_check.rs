//! Checks whether this kernel loads and attaches the programs, and leaves no trace: private empty
//! maps, links that end with their descriptors, no pins. With empty maps a program changes nothing.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use super::cgroup::Cgroup;
use super::object::{LoadOptions, MapSource, Object, ProgramLogging};
use super::programs::{ALL, INBOUND};
use super::sys::{self, AttachType};
use super::{Error, pins, private};

/// The program that is attached during the check, to `getpeername()`.
const ATTACHED: (&str, AttachType) = ("peername4", AttachType::PeerName4);

/// All programs, checked by the kernel's verifier and not attached.
#[derive(Debug)]
pub struct ProgramCheck {
    object: Object,
}

impl ProgramCheck {
    /// Loads the programs.
    ///
    /// # Errors
    /// As [`Kernel::open`](super::Kernel::open).
    pub fn load() -> Result<Self, Error> {
        let options = LoadOptions::default();
        let object = Object::load(MapSource::Private, &ALL, ProgramLogging::Off, options)?;
        Ok(Self { object })
    }

    /// The number of programs.
    #[must_use]
    pub fn programs(&self) -> usize {
        ALL.len()
    }

    /// Attaches a program to the cgroup, the configured one or the hierarchy's root, and detaches
    /// it. Returns the cgroup's path.
    ///
    /// # Errors
    /// When there is no such cgroup, or the program cannot be attached.
    pub fn attach_cgroup(&self, configured: Option<&Path>) -> Result<PathBuf, Error> {
        let cgroup = Cgroup::open(configured)?;
        let (name, attach) = ATTACHED;
        self.attach(name, cgroup.directory(), attach, "the cgroup")?;
        Ok(cgroup.path().to_path_buf())
    }

    /// Attaches the inbound program to a network namespace, and detaches it.
    ///
    /// # Errors
    /// When the program cannot be attached.
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

/// The state of the directory for pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinDirectory {
    /// On a BPF file system, and pins can be created: this is the nearest existing directory.
    Ready(PathBuf),
    /// With the pins of a proxy, which may have ended, and this number of pods.
    InUse(usize),
    /// Not on a BPF file system: the proxy mounts one here.
    Missing(PathBuf),
}

impl PinDirectory {
    /// Inspects the directory, and creates and removes another one beside the pins.
    ///
    /// # Errors
    /// When no directory can be created there.
    pub fn inspect(directory: &Path) -> Result<Self, Error> {
        let nearest = pins::nearest(directory);
        if !pins::is_bpf_fs(nearest) {
            return Ok(Self::Missing(nearest.to_path_buf()));
        }
        // Names in a BPF file system have no dots.
        let probe = nearest.join(format!("ztunnel_doctor_{}", std::process::id()));
        let created = fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe));
        created.map_err(|source| Error::Pin {
            path: probe,
            action: "created",
            source,
        })?;
        if directory.exists() {
            private::check(directory)?;
        }
        let pods = pins::enrolled_below(directory);
        Ok(pods.map_or_else(|| Self::Ready(nearest.to_path_buf()), Self::InUse))
    }
}
