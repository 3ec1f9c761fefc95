//! The proxy's interface to the kernel: loads the eBPF programs, keeps them attached across
//! restarts, and writes which pods they capture. The only user of aya.
//!
//! Programs and maps are pinned in the BPF file system and outlive the proxy. After its death,
//! captured connections are refused, because there is no listener; they are never sent in
//! plaintext. A new proxy takes over the pins and replaces the programs in place; it never detaches
//! first. Sockets outside of enrolled pods are never changed.
//!
//! [`crate::pods`] enrols pods, [`crate::proxy`] asks about captured connections, `node` opens the
//! [`Kernel`].

mod captured;
mod cgroup;
mod config;
mod entries;
mod error;
mod events;
mod foreign_programs;
mod ip_netns;
mod join;
mod layout_2;
mod log;
mod maps;
mod node_mount;
mod object;
mod permissions;
mod pins;
mod pod_capture;
mod private;
mod process_locks;
mod program_check;
mod programs;
mod resolver;
mod rewriting;
pub mod selftest;
mod sys;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use ztunnel_ebpf_types::{CAPTURE_MARK, CAPTURE_MARK_MASK};
use ztunnel_ebpf_types::{POD_DNS, POD_JOIN};

pub use captured::{ApplicationSocket, BackendChoice, CapturedDestination};
use cgroup::Cgroup;
pub use config::{Config, Exemptions, Ports};
pub use entries::{ListenerRole, StoredEntry};
pub use error::Error;
pub use events::{Event, EventKind, Events};
pub use foreign_programs::{captured_pods_below, is_captured};
pub use ip_netns::ip_netns_exec;
pub use log::LogForwarder;
use maps::Maps;
use mesh::NetnsCookie;
pub use node_mount::{
    NODE_BPF_FS, NodePreparation, pin_directories, prepare_directory, prepare_node, require_bpf_fs,
    unmount_prepared,
};
use object::{LoadOptions, MapSource, Object, ProgramLogging, kernel_has_process_id};
pub use object::{is_at_least, release};
pub use permissions::{Capability, NEEDED, effective_capabilities, missing_capabilities};
use pins::Pins;
pub(crate) use pins::{ACTIVE_LOCK, STANDBY_LOCK};
use pod_capture::Instances;
pub use pod_capture::{CaptureListeners, PodCapture};
pub(crate) use private::create as create_private;
use process_locks::ProcessLocks;
pub use process_locks::is_in_use;
pub(crate) use process_locks::{failed as pin_failed, try_lock};
pub use program_check::{PinDirectory, ProgramCheck};
use programs::{ALL, Hooks, INBOUND, Links, REDIRECT, attach_cgroup};
pub use programs::{Installed, Missing};
pub use resolver::reply_source;

/// The network namespace of a socket.
///
/// # Errors
/// When the kernel is older than 5.14 and lacks the option.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<NetnsCookie> {
    sys::netns_cookie(socket).map(NetnsCookie)
}

/// Checks that there is a cgroup to attach programs to.
///
/// # Errors
/// When there is none, or only part of the hierarchy is visible.
pub fn check_cgroup(config: &Config) -> Result<(), Error> {
    Cgroup::open(config.cgroup.as_deref()).map(drop)
}

/// The loaded programs and their maps. Dropping it changes nothing: everything that is pinned stays
/// attached.
#[derive(Debug)]
pub struct Kernel {
    pins: Pins,
    cgroup: Cgroup,
    links: Links,
    maps: Arc<Maps>,
    /// The ring buffer of events.
    events: OwnedFd,
    /// The programs; replaced when they are loaded again with logging.
    object: Mutex<Object>,
    instances: Mutex<Instances>,
    /// Whether the programs of the version before still capture: see [`Self::replace_rewriting`].
    rewriting_captures: AtomicBool,
    /// Whether the DNS programs are attached.
    dns_attached: AtomicBool,
    load_options: LoadOptions,
    may_join: AtomicBool,
    process_locks: ProcessLocks,
    /// This process's id, and the lock that shows that it is alive, since it became active.
    own_lock: Mutex<Option<OwnLock>>,
}

/// The lock of this process, under its id in the initial pid namespace.
#[derive(Debug)]
struct OwnLock {
    process: u32,
    _lock: File,
}

impl Kernel {
    /// Loads and attaches the programs: [`Self::load`], [`Self::become_active`].
    ///
    /// # Errors
    /// As those two.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let kernel = Self::load(config)?;
        kernel.become_active(config)?;
        Ok(kernel)
    }

    /// Loads the programs, with the pinned maps of an earlier proxy if there are any. Nothing that
    /// another process has attached is changed.
    ///
    /// # Errors
    /// When capabilities, a cgroup v2 hierarchy, a BPF file system or kernel features are missing;
    /// the message says which.
    pub fn load(config: &Config) -> Result<Self, Error> {
        let cgroup = Cgroup::open(config.cgroup.as_deref())?;
        let pins = Pins::open(&config.directory)?;
        layout_2::share_maps(&pins)?;
        let source = MapSource::Pinned(&pins);
        let options = LoadOptions {
            max_entries: config.max_entries,
            dns_port: config.ports.dns,
        };
        let mut object = Object::load(source, &ALL, ProgramLogging::Off, options)?;
        let maps = Maps::open(&mut object)?;
        let events = object.map("EVENTS")?;
        Ok(Self {
            process_locks: ProcessLocks::new(&pins),
            own_lock: Mutex::default(),
            object: Mutex::new(object),
            instances: Mutex::default(),
            rewriting_captures: AtomicBool::new(false),
            dns_attached: AtomicBool::new(false),
            pins,
            cgroup,
            links: Links::default(),
            maps: Arc::new(maps),
            events,
            load_options: options,
            may_join: AtomicBool::new(false),
        })
    }

    /// Attaches the programs, or replaces those that an earlier proxy has attached, and removes
    /// links of namespaces that no longer exist. Only the active process may call it. Connections
    /// that an earlier process dials are not captured for as long as that process is alive.
    ///
    /// If the version before captures pods, its programs stay until [`Self::replace_rewriting`].
    ///
    /// # Errors
    /// When a program cannot be attached, or a map or a pin cannot be written.
    pub fn become_active(&self, config: &Config) -> Result<(), Error> {
        let maps = &self.maps;
        layout_2::move_links(&self.pins)?;
        maps.adopt_previous_proxy(&self.process_locks)?;
        maps.configure(|settings| {
            settings.mark = config.mark;
            settings.delivery_mark = config.delivery_mark;
            settings.process = 0;
            settings.outbound_port = config.ports.outbound.into();
            settings.hbone_port = config.ports.hbone.into();
        })?;
        maps.set_exemptions(&config.exemptions)?;
        let rewriting = programs::rewriting_captures(&self.pins) && !self.enrolled()?.is_empty();
        self.rewriting_captures.store(rewriting, Ordering::Relaxed);
        // Without process ids (before Linux 6.10) it is not known which proxies are alive. If this version
        // has captured before, the proxy before this one was of this version.
        if !rewriting && !kernel_has_process_id() && programs::has_captured(&self.pins) {
            programs::replace_old_names(&self.object(), self.hooks())?;
        }
        if !rewriting {
            attach_cgroup(&self.object(), self.hooks())?;
        }
        // On older kernels the mark alone identifies the proxy's own sockets.
        if kernel_has_process_id() {
            maps.handshake()?;
        }
        self.lock_own_process()?;
        let is_joined = maps.any_pod(|pod| pod.flags & POD_JOIN != 0)?;
        self.may_join.store(is_joined, Ordering::Relaxed);
        self.dns_attached.store(false, Ordering::Relaxed);
        if maps.any_pod(|pod| pod.flags & POD_DNS != 0)? {
            self.attach_dns()?;
        } else {
            programs::detach_dns(self.hooks())?;
        }
        if rewriting {
            return Ok(());
        }
        self.update_namespaces()
    }

    /// Whether the sockets of every process of the machine run the programs.
    #[must_use]
    pub fn covers_machine(&self) -> bool {
        self.cgroup.is_root()
    }

    /// Those of these cgroups whose sockets do not run the programs, by their ids.
    ///
    /// # Errors
    /// When a directory of the hierarchy cannot be read.
    pub fn cgroups_outside(&self, ids: &BTreeSet<u64>) -> io::Result<BTreeSet<u64>> {
        self.cgroup.outside(ids)
    }

    /// Takes the lock that shows later processes that this one is alive; again if its directory was
    /// removed.
    fn lock_own_process(&self) -> Result<(), Error> {
        let own = self.maps.process()?;
        let mut own_lock = self.own_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let is_held = |lock: &OwnLock| lock.process == own && self.process_locks.exists(own);
        if own != 0 && !own_lock.as_ref().is_some_and(is_held) {
            *own_lock = Some(OwnLock {
                process: own,
                _lock: self.process_locks.lock(own)?,
            });
        }
        drop(own_lock);
        self.forget_ended_proxies().map(drop)
    }

    /// Removes earlier processes that have ended from the list of proxies whose sockets are not
    /// captured: the kernel may reuse their ids. Returns whether some are still alive; call it
    /// again soon then.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn forget_ended_proxies(&self) -> Result<bool, Error> {
        let own = self.maps.process()?;
        let left = self.maps.forget_ended_proxies(own, &self.process_locks)?;
        self.process_locks.remove_ended()?;
        if own != 0 && !left && !self.rewriting_captures() && programs::has_old_names(&self.pins) {
            programs::replace_old_names(&self.object(), self.hooks())?;
        }
        Ok(left)
    }

    /// Whether this process may become active again if no process is: false if a process that was
    /// active later is still alive.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn is_next_active(&self) -> Result<bool, Error> {
        let own_lock = self.own_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let own = own_lock.as_ref().map(|lock| lock.process);
        drop(own_lock);
        // Without process ids (before Linux 6.10) there is no order.
        own.map_or(Ok(true), |own| {
            self.maps.was_active_last(own, &self.process_locks)
        })
    }

    /// Gives the namespaces of an earlier proxy this one's program, and withdraws those that no
    /// longer exist.
    fn update_namespaces(&self) -> Result<(), Error> {
        for cookie in self.pins.enrolled()? {
            let pin = self.pins.netns(cookie);
            let object = self.object();
            let mut instances = self.instances();
            let program = instances.of(&object, cookie)?;
            let exists = programs::replace_netns(program, &pin, &self.links)?;
            drop((object, instances));
            if !exists {
                self.withdraw(cookie)?;
            }
        }
        Ok(())
    }

    fn object(&self) -> MutexGuard<'_, Object> {
        self.object.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn instances(&self) -> MutexGuard<'_, Instances> {
        self.instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches the DNS programs. They stay attached until a proxy starts and finds no pod with DNS
    /// capture.
    fn attach_dns(&self) -> Result<(), Error> {
        let object = self.object();
        if !self.dns_attached.load(Ordering::Relaxed) {
            programs::attach_dns(&object, self.hooks())?;
            self.dns_attached.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    const fn hooks(&self) -> Hooks<'_> {
        Hooks {
            pins: &self.pins,
            cgroup: &self.cgroup,
            links: &self.links,
        }
    }

    /// Installs what is missing of the programs and of all pins, because another process has removed it.
    /// Returns what was missing. Only the active process may call it.
    ///
    /// # Errors
    /// When a program cannot be attached, or a pin cannot be created.
    pub fn restore(&self) -> Result<Vec<Installed>, Error> {
        self.pins.create()?;
        self.lock_own_process()?;
        let object = self.object();
        let maps = object.restore_pins(&self.pins)?;
        let unpinned = maps.into_iter().map(|name| Installed {
            name,
            missing: Missing::Pin,
        });
        let mut installed: Vec<_> = unpinned.collect();
        if !self.rewriting_captures() {
            installed.extend(attach_cgroup(&object, self.hooks())?);
        }
        if self.dns_attached.load(Ordering::Relaxed) {
            installed.extend(programs::attach_dns(&object, self.hooks())?);
        }
        Ok(installed)
    }

    /// Detaches what is not pinned. For a process that is no longer the active one without having handed
    /// over: another one has pins of its own.
    pub fn release_links(&self) {
        self.links.clear();
    }

    /// Detaches the programs and removes the pins of proxies with another layout of the maps. Call
    /// it when this proxy captures all pods: until then, the other programs keep them captured.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove_other_layouts(&self) -> Result<(), Error> {
        self.pins.remove_other_layouts()
    }

    /// Replaces the exemptions; valid for new connections.
    ///
    /// # Errors
    /// When a map is full or cannot be written.
    pub fn set_exemptions(&self, exemptions: &Exemptions) -> Result<(), Error> {
        self.maps.set_exemptions(exemptions)
    }

    /// The events of fast-path connections. Needs a tokio runtime; one reader at a time.
    ///
    /// # Errors
    /// When the ring buffer cannot be mapped or watched.
    pub fn events(&self) -> Result<Events, Error> {
        let map = self.events.try_clone().map_err(|source| Error::Map {
            map: "EVENTS".to_owned(),
            action: "opened",
            source,
        })?;
        Events::open(map)
    }

    /// Attaches the program that moves bytes between the sockets of joined connections. Without it
    /// such connections are plain TCP.
    ///
    /// # Errors
    /// When this kernel has no sockmap, or does not load the program.
    pub fn enable_join(&self) -> Result<(), Error> {
        // Not with new maps.
        self.object().restore_pins(&self.pins)?;
        let source = MapSource::Pinned(&self.pins);
        let mut object = Object::load(source, &[REDIRECT], ProgramLogging::Off, self.load_options)?;
        self.may_join.store(true, Ordering::Relaxed);
        join::attach(&mut object).map(drop)
    }

    /// Whether sockets of this node may be joined, by this process or an earlier one.
    #[must_use]
    pub fn may_join(&self) -> bool {
        self.may_join.load(Ordering::Relaxed)
    }

    /// Replaces the programs by ones that log their decisions, and forwards the records to the
    /// `log` crate at debug level. The default programs have no code for that.
    ///
    /// # Errors
    /// When the programs cannot be replaced, or their ring buffer cannot be opened.
    pub fn log_forwarder(&self) -> Result<LogForwarder, Error> {
        // Not with new maps.
        self.object().restore_pins(&self.pins)?;
        let source = MapSource::Pinned(&self.pins);
        let object = Object::load(source, &ALL, ProgramLogging::Debug, self.load_options)?;
        if !self.rewriting_captures() {
            attach_cgroup(&object, self.hooks())?;
        }
        if self.dns_attached.load(Ordering::Relaxed) {
            programs::attach_dns(&object, self.hooks())?;
        }
        let id = sys::program_id(object.program(INBOUND)?);
        let mut current = self.object();
        *current = object;
        // Before others can load instances of the new object.
        self.instances().clear();
        drop(current);
        if !self.rewriting_captures() {
            self.update_namespaces()?;
        }
        let id = id.map_err(|source| Error::Attach {
            program: INBOUND,
            target: "its log".to_owned(),
            source,
        })?;
        LogForwarder::open(Arc::clone(&self.maps), id)
    }

    /// Ends all capture by the pins of a directory: detaches the programs, removes the pins, and
    /// unmounts the file system if it was mounted at this directory. The pods' connections are then
    /// neither captured nor refused.
    ///
    /// # Errors
    /// When a pin, the directory or the mount cannot be removed.
    pub fn remove_pins(directory: &Path) -> Result<bool, Error> {
        pins::remove_all(directory)
    }
}
