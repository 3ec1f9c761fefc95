//! The kernel's side of the proxy: loads the eBPF programs, keeps them at work across restarts,
//! and tells them which pods to capture. The only user of aya.
//!
//! Programs and maps are pinned in the BPF file system. When the proxy dies they stay: captured
//! connections are then refused, because no listener is there, and never pass in the clear. A new
//! proxy takes over what it finds, replacing programs in place; nothing is ever detached first.
//! What is not enrolled is never touched.
//!
//! [`crate::pods`] enrols, [`crate::proxy`] asks for original destinations, `node` opens it.

mod config;
mod entries;
mod error;
mod events;
mod foreign_programs;
mod join;
mod log;
mod maps;
mod object;
mod pins;
mod process_locks;
mod programs;
mod resolver;
pub mod selftest;
mod sys;
#[cfg(test)]
mod tests;
mod trial;

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ztunnel_ebpf_types::{Address, Client, POD_DNS, POD_ENROLLED, POD_JOIN, Pod};

pub use config::{Config, Exemptions, Ports};
pub use error::Error;
pub use events::{Event, Events, Happening};
pub use foreign_programs::{captured_below, is_captured};
pub use log::LogForwarder;
use maps::{Maps, failed};
use mesh::NetnsCookie;
use object::{Object, Owner, Settled, Speech, kernel_knows_process};
pub use object::{is_at_least, release};
use pins::Pins;
use process_locks::ProcessLocks;
pub(crate) use process_locks::{failed as pin_failed, try_lock};
use programs::{ALL, Cgroup, INBOUND, PAST, attach_cgroup};
pub use resolver::reply_source;
pub use trial::{PinPlace, Trial};

/// The network namespace that a socket was made in.
///
/// # Errors
/// When the kernel is older than 5.14 and has no such option.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<NetnsCookie> {
    sys::netns_cookie(socket).map(NetnsCookie)
}

/// Makes sure that a directory for pins exists on a BPF file system, mounting one if need be.
///
/// # Errors
/// When that is impossible.
pub fn prepare_directory(directory: &Path) -> Result<(), Error> {
    Pins::open(directory).map(drop)
}

/// A pod to capture.
#[derive(Debug, Clone, Copy)]
pub struct PodCapture<'a> {
    /// Its network namespace.
    pub cookie: NetnsCookie,
    /// The namespace's file.
    pub netns: BorrowedFd<'a>,
    /// All of its addresses. The first of each family is what its captured sockets are bound to.
    pub addresses: &'a [IpAddr],
    /// The proxy's inbound listener in the pod: listening, dual stack; of a `SO_REUSEPORT` group,
    /// any member.
    pub inbound: BorrowedFd<'a>,
    /// Whether what the pod asks of its resolvers goes to the proxy's DNS listeners.
    pub dns: bool,
}

/// Which backends of a service a captured connection may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Whichever the proxy chooses.
    Any,
    /// The kernel has rolled the dice, and it is none of those that its verdict names.
    Elsewhere,
}

/// What a captured connection was meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// What the application called.
    pub destination: SocketAddr,
    /// What is left to choose.
    pub choice: Choice,
}

/// Looks whether there is a cgroup to attach programs to, and does nothing else.
///
/// # Errors
/// When there is none, or only part of the hierarchy can be seen.
pub fn find_cgroup(config: &Config) -> Result<(), Error> {
    Cgroup::open(config.cgroup.as_deref()).map(drop)
}

/// The programs at work. Dropping it changes nothing: what is pinned goes on.
#[derive(Debug)]
pub struct Kernel {
    pins: Pins,
    cgroup: Cgroup,
    maps: Arc<Maps>,
    /// The ring of events, until somebody reads it.
    events: OwnedFd,
    /// The programs; replaced when they are loaded anew.
    object: Mutex<Object>,
    /// The hooks of datagrams have programs.
    datagrams: AtomicBool,
    settled: Settled,
    joins: AtomicBool,
    process_locks: ProcessLocks,
    /// This process's number, and the lock that shows that it lives, once it was in charge.
    life: Mutex<Option<(u32, File)>>,
}

impl Kernel {
    /// Loads the programs and puts them to work at once: [`Self::load`], [`Self::become_active`].
    ///
    /// # Errors
    /// As those two.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let kernel = Self::load(config)?;
        kernel.become_active(config)?;
        Ok(kernel)
    }

    /// Loads the programs, over the maps of an earlier proxy where there are some. Nothing that
    /// another process has at work is touched.
    ///
    /// # Errors
    /// Says what is missing: capabilities, a cgroup v2 hierarchy, a BPF file system, a newer
    /// kernel.
    pub fn load(config: &Config) -> Result<Self, Error> {
        let cgroup = Cgroup::open(config.cgroup.as_deref())?;
        let pins = Pins::open(&config.directory)?;
        let owner = Owner::Pinned(&pins);
        let settled = Settled {
            verdicts: config.verdicts,
            dns: config.ports.dns,
        };
        let mut object = Object::load(owner, &ALL, Speech::Silent, settled)?;
        let maps = Maps::open(&mut object)?;
        let events = object.map("EVENTS")?;
        Ok(Self {
            process_locks: ProcessLocks::beside(&pins),
            life: Mutex::default(),
            object: Mutex::new(object),
            datagrams: AtomicBool::new(false),
            pins,
            cgroup,
            maps: Arc::new(maps),
            events,
            settled,
            joins: AtomicBool::new(false),
        })
    }

    /// Puts the programs to work, taking over what an earlier proxy has pinned. Links of namespaces
    /// that no longer exist are removed. Only for the one process that is in charge
    /// ([`Handover`]); what the one before dials stays its own as long as it lives.
    ///
    /// # Errors
    /// When a program cannot be attached, or a map or a pin cannot be written.
    pub fn become_active(&self, config: &Config) -> Result<(), Error> {
        let maps = &self.maps;
        maps.succeed(&self.process_locks)?;
        maps.configure(|settings| {
            settings.mark = config.mark;
            settings.delivery = config.delivery_mark;
            settings.process = 0;
            settings.outbound = config.ports.outbound.into();
            settings.hbone = config.ports.hbone.into();
        })?;
        maps.exempt(&config.exemptions)?;
        attach_cgroup(&self.object(), &self.pins, &self.cgroup)?;
        // Elsewhere the mark alone tells the proxy's own sockets, and nobody has to be known.
        if kernel_knows_process() {
            maps.introduce()?;
        }
        self.show_life()?;
        let joined = maps.any_pod(|pod| pod.flags & POD_JOIN != 0)?;
        self.joins.store(joined, Ordering::Relaxed);
        self.datagrams.store(false, Ordering::Relaxed);
        if maps.any_pod(|pod| pod.flags & POD_DNS != 0)? {
            self.watch_datagrams()?;
        } else {
            programs::detach_datagrams(&self.pins)?;
        }
        self.renew()
    }

    /// Lets a process that comes later see for how long this one lives.
    fn show_life(&self) -> Result<(), Error> {
        let own = self.maps.process()?;
        let mut life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        if own != 0 && life.as_ref().is_none_or(|(process, _)| *process != own) {
            *life = Some((own, self.process_locks.lock(own)?));
        }
        drop(life);
        self.forget_ended_proxies().map(drop)
    }

    /// What a process dials that was in charge before is its own for as long as it lives, and its
    /// number is nobody's afterwards. Says whether there are such processes yet: then this is to be
    /// called again soon.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn forget_ended_proxies(&self) -> Result<bool, Error> {
        let own = self.maps.process()?;
        let left = self.maps.forget_ended_proxies(own, &self.process_locks)?;
        self.process_locks.remove_ended()?;
        Ok(left)
    }

    /// Whether this process is the one to take charge again should nobody be in charge: another one
    /// that lives yet may have been in charge after it.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn is_next_active(&self) -> Result<bool, Error> {
        let life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        let own = life.as_ref().map(|(process, _)| *process);
        drop(life);
        // Where nobody has to be known, nobody knows.
        own.map_or(Ok(true), |own| {
            self.maps.is_youngest(own, &self.process_locks)
        })
    }

    /// Gives the namespaces of an earlier proxy this one's program, and forgets dead ones.
    fn renew(&self) -> Result<(), Error> {
        for cookie in self.pins.enrolled()? {
            let pin = self.pins.netns(cookie);
            let lives = programs::renew_netns(self.object().program(INBOUND)?, &pin)?;
            if !lives {
                self.withdraw(cookie)?;
            }
        }
        Ok(())
    }

    fn object(&self) -> MutexGuard<'_, Object> {
        self.object.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the programs see datagrams from now on, until a proxy starts that finds no pod whose
    /// DNS is captured.
    fn watch_datagrams(&self) -> Result<(), Error> {
        let object = self.object();
        if !self.datagrams.load(Ordering::Relaxed) {
            programs::attach_datagrams(&object, &self.pins, &self.cgroup)?;
            self.datagrams.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Detaches what a proxy with another layout of the maps has left. Call it when all pods are
    /// captured by this one: until then the other's programs keep them closed.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn retire_others(&self) -> Result<(), Error> {
        self.pins.retire_others()
    }

    /// Makes the exemptions these and no others; counts for new connections.
    ///
    /// # Errors
    /// When a map cannot be written, or holds no more than it does.
    pub fn set_exemptions(&self, exemptions: &Exemptions) -> Result<(), Error> {
        self.maps.exempt(exemptions)
    }

    /// Captures a pod from now on. May be called again, with other addresses or another listener,
    /// and for a pod that an earlier proxy captured.
    ///
    /// # Errors
    /// When the listener does not listen, or the namespace or a map refuses. The pod may then be
    /// half captured: its inbound connections dropped, its outbound ones free. Try again or
    /// withdraw it.
    pub fn enroll(&self, pod: &PodCapture<'_>) -> Result<(), Error> {
        let cookie = pod.cookie;
        let addresses: Vec<Address> = pod.addresses.iter().copied().map(Address::from).collect();
        if addresses.is_empty() {
            return Err(Error::Pod {
                cookie,
                problem: "it has no address",
            });
        }
        let maps = &self.maps;
        let listener = pod.inbound.as_raw_fd().cast_unsigned();
        self.mark_listener(pod.inbound)
            .map_err(failed(&maps.sockets, "written"))?;
        for address in &addresses {
            maps.addresses
                .insert(address, &cookie.0)
                .map_err(failed(&maps.addresses, "written"))?;
            let inserted = maps.listeners.insert(address, &listener);
            inserted.map_err(|source| match source.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::EINVAL) => Error::Pod {
                    cookie,
                    problem: "its inbound socket is not a listening TCP socket",
                },
                _ => failed(&maps.listeners, "written")(source),
            })?;
        }
        maps.forget_addresses(cookie, &addresses)?;
        let object = self.object();
        programs::attach_netns(object.program(INBOUND)?, pod.netns, cookie, &self.pins)?;
        drop(object);
        if pod.dns {
            self.watch_datagrams()?;
        }
        let first = |v4: bool| {
            let mut of_family = addresses.iter().filter(|address| address.is_v4() == v4);
            of_family.next().copied().unwrap_or(Address::NONE)
        };
        let entry = Pod {
            v4: first(true),
            v6: first(false),
            flags: POD_ENROLLED | if pod.dns { POD_DNS } else { 0 },
        };
        maps.pods
            .insert(&cookie.0, &entry)
            .map_err(failed(&maps.pods, "written"))
    }

    /// Leaves a pod alone from now on; connections that are captured go on. A pod that is not
    /// captured is no error.
    ///
    /// # Errors
    /// When a map or a pin cannot be written.
    pub fn withdraw(&self, cookie: NetnsCookie) -> Result<(), Error> {
        let maps = &self.maps;
        maps.pods
            .remove(&cookie.0)
            .map_err(failed(&maps.pods, "written"))?;
        pins::detach(&self.pins.netns(cookie))?;
        maps.forget_addresses(cookie, &[])
    }

    /// The namespaces that are captured, also those of an earlier proxy.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn enrolled(&self) -> Result<Vec<NetnsCookie>, Error> {
        let cookies = self.maps.pods.keys();
        let cookies = cookies.map_err(failed(&self.maps.pods, "read"))?;
        Ok(cookies.into_iter().map(NetnsCookie).collect())
    }

    /// Where a captured connection was meant to go, by its client's end as `accept()` returns it.
    /// It can be asked once. None: this connection was not captured, someone connected to the
    /// proxy's port directly.
    ///
    /// One system call; meant for every connection.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn original_destination(
        &self,
        cookie: NetnsCookie,
        client: SocketAddr,
    ) -> Result<Option<Origin>, Error> {
        let key = Client {
            cookie: cookie.0,
            address: client.ip().into(),
            port: client.port().into(),
            zero: 0,
        };
        let origins = &self.maps.origins;
        let found = origins.take(&key).map_err(failed(origins, "read"))?;
        Ok(found.and_then(|destination| {
            let port = u16::try_from(destination.port).ok()?;
            Some(Origin {
                destination: SocketAddr::new(destination.address.into(), port),
                choice: if destination.elsewhere == 0 {
                    Choice::Any
                } else {
                    Choice::Elsewhere
                },
            })
        }))
    }

    /// The events of the direct lane. Needs a tokio runtime; one reader at a time.
    ///
    /// # Errors
    /// When the ring cannot be mapped or watched.
    pub fn events(&self) -> Result<Events, Error> {
        let map = self.events.try_clone().map_err(|source| Error::Map {
            map: "EVENTS".to_owned(),
            action: "opened",
            source,
        })?;
        Events::open(map)
    }

    /// Lets connections be joined: from now on bytes between the ends that the programs enrol go
    /// past TCP. Without it such connections are plain TCP.
    ///
    /// # Errors
    /// When this kernel has no sockmap, or does not take the program.
    pub fn join(&self) -> Result<(), Error> {
        let owner = Owner::Pinned(&self.pins);
        let mut object = Object::load(owner, &[PAST], Speech::Silent, self.settled)?;
        self.joins.store(true, Ordering::Relaxed);
        join::attach(&mut object).map(drop)
    }

    /// Whether sockets of this node may be joined, by this process or an earlier one.
    #[must_use]
    pub fn may_join(&self) -> bool {
        self.joins.load(Ordering::Relaxed)
    }

    /// Has the programs say what they decide, and forwards it to the `log` crate at debug level.
    /// Silent programs have no code for it: others are put in their place.
    ///
    /// # Errors
    /// When the programs cannot be replaced, or their ring buffer cannot be opened.
    pub fn log_forwarder(&self) -> Result<LogForwarder, Error> {
        let owner = Owner::Pinned(&self.pins);
        let object = Object::load(owner, &ALL, Speech::Debug, self.settled)?;
        attach_cgroup(&object, &self.pins, &self.cgroup)?;
        if self.datagrams.load(Ordering::Relaxed) {
            programs::attach_datagrams(&object, &self.pins, &self.cgroup)?;
        }
        let id = sys::program_id(object.program(INBOUND)?);
        *self.object() = object;
        self.renew()?;
        let id = id.map_err(|source| Error::Attach {
            program: INBOUND,
            target: "its log".to_owned(),
            source,
        })?;
        LogForwarder::open(Arc::clone(&self.maps), id)
    }

    /// Ends all capture by the pins of a directory: detaches the programs, removes the pins and
    /// unmounts the file system if it was mounted at this directory. Pods are then without a
    /// mesh, not refused.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove_pins(directory: &Path) -> Result<bool, Error> {
        pins::remove_all(directory)
    }
}
