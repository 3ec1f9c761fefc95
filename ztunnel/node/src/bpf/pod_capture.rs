//! Which pods the programs capture.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use ztunnel_ebpf_types::{
    Address, LISTENER_DNS, LISTENER_INBOUND, LISTENER_OUTBOUND, ListenerKey, POD_ARRIVING, POD_DNS,
    POD_ENROLLED, Pod,
};

use super::entries::ListenerRole;
use super::maps::failed;
use super::object::Object;
use super::{Error, Installed, Kernel, pins, programs};
use mesh::NetnsCookie;

/// How long a call of `connect()` may take from the connect hook to the SYN.
const IN_FLIGHT: Duration = Duration::from_millis(2);

/// The loaded instances of the program for pods' namespaces.
#[derive(Debug, Default)]
pub(super) struct Instances(HashMap<NetnsCookie, OwnedFd>);

impl Instances {
    /// The instance for a pod; it is loaded if it is not there.
    pub(super) fn of(
        &mut self,
        object: &Object,
        pod: NetnsCookie,
    ) -> Result<BorrowedFd<'_>, Error> {
        let instance: &OwnedFd = match self.0.entry(pod) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(object.load_inbound(pod)?),
        };
        Ok(instance.as_fd())
    }

    /// Forgets all instances: they are of another object.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

fn listener_key(pod: NetnsCookie, kind: u32) -> ListenerKey {
    ListenerKey {
        pod: pod.0,
        kind,
        zero: 0,
    }
}

/// A pod to capture.
#[derive(Debug, Clone, Copy)]
pub struct PodCapture<'a> {
    /// The pod's network namespace.
    pub cookie: NetnsCookie,
    /// The namespace's file.
    pub netns: BorrowedFd<'a>,
    /// All of the pod's addresses.
    pub addresses: &'a [IpAddr],
    /// The proxy's listeners in the pod.
    pub listeners: CaptureListeners<BorrowedFd<'a>>,
}

/// The proxy's listeners in a pod that the programs give connections to: TCP, listening, and for both
/// families where the pod has both. Of a `SO_REUSEPORT` group any member will do.
#[derive(Debug, Clone, Copy)]
pub struct CaptureListeners<F> {
    /// For connections into the pod.
    pub inbound: F,
    /// For the pod's captured connections; transparent (`IP_TRANSPARENT`), to answer from the address
    /// that the application dialled.
    pub outbound: F,
    /// As `outbound`, for connections to resolvers. None: the pod's DNS queries are not captured.
    pub dns: Option<F>,
}

impl Kernel {
    /// Captures a pod. May be called again, with other addresses or another listener, and for a pod
    /// that an earlier proxy captured.
    ///
    /// # Errors
    /// When the listener does not listen, or the namespace or a map cannot be written. The pod may
    /// then be partly captured: inbound connections are dropped, outbound ones are not captured.
    /// Call it again, or withdraw the pod.
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
        self.set_listeners(cookie, &pod.listeners)?;
        for address in &addresses {
            maps.addresses
                .insert(address, &cookie.0)
                .map_err(failed(&maps.addresses, "written"))?;
        }
        maps.remove_addresses(cookie, &addresses)?;
        self.attach_inbound(pod.netns, cookie)?;
        let dns = pod.listeners.dns.is_some();
        if dns {
            self.attach_dns()?;
        }
        let first = |v4: bool| {
            let mut of_family = addresses.iter().filter(|address| address.is_v4() == v4);
            of_family.next().copied().unwrap_or(Address::NONE)
        };
        let known = maps.pods.get(&cookie.0);
        let known = known.map_err(failed(&maps.pods, "read"))?;
        let arriving = known.map_or(POD_ARRIVING, |known| known.flags & POD_ARRIVING);
        let entry = Pod {
            v4: first(true),
            v6: first(false),
            flags: POD_ENROLLED | arriving | if dns { POD_DNS } else { 0 },
        };
        maps.pods
            .insert(&cookie.0, &entry)
            .map_err(failed(&maps.pods, "written"))
    }

    /// Tells the programs which listeners of the pod get its connections.
    fn set_listeners(
        &self,
        pod: NetnsCookie,
        listeners: &CaptureListeners<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let map = &self.maps.listeners;
        for (kind, listener) in [
            (LISTENER_INBOUND, Some(listeners.inbound)),
            (LISTENER_OUTBOUND, Some(listeners.outbound)),
            (LISTENER_DNS, listeners.dns),
        ] {
            let key = listener_key(pod, kind);
            let Some(listener) = listener else {
                map.remove(&key).map_err(failed(map, "written"))?;
                continue;
            };
            let role = if kind == LISTENER_INBOUND {
                ListenerRole::Inbound
            } else {
                ListenerRole::Captured
            };
            self.mark_listener(listener, role)
                .map_err(failed(&self.maps.socket_states, "written"))?;
            let descriptor = listener.as_raw_fd().cast_unsigned();
            let inserted = map.insert(&key, &descriptor);
            inserted.map_err(|source| match source.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::EINVAL) => Error::Pod {
                    cookie: pod,
                    problem: "one of the proxy's sockets in it is not a listening TCP socket",
                },
                _ => failed(map, "written")(source),
            })?;
        }
        Ok(())
    }

    /// Installs what is missing of a captured pod's program and its pin. Returns what was missing.
    ///
    /// # Errors
    /// When the program cannot be attached.
    pub fn restore_pod(
        &self,
        netns: BorrowedFd<'_>,
        cookie: NetnsCookie,
    ) -> Result<Option<Installed>, Error> {
        self.attach_inbound(netns, cookie)
    }

    fn attach_inbound(
        &self,
        netns: BorrowedFd<'_>,
        cookie: NetnsCookie,
    ) -> Result<Option<Installed>, Error> {
        let object = self.object();
        let mut instances = self.instances();
        let program = instances.of(&object, cookie)?;
        programs::attach_netns(program, netns, cookie, self.hooks())
    }

    /// Ends the time in which a new pod's applications may accept connections whose SYN is older than
    /// the pod's enrollment.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn settle(&self, cookie: NetnsCookie) -> Result<(), Error> {
        let pods = &self.maps.pods;
        let known = pods.get(&cookie.0).map_err(failed(pods, "read"))?;
        let Some(mut entry) = known.filter(|known| known.flags & POD_ARRIVING != 0) else {
            return Ok(());
        };
        entry.flags &= !POD_ARRIVING;
        pods.insert(&cookie.0, &entry)
            .map_err(failed(pods, "written"))
    }

    /// Ends the capture of a pod; captured connections continue. A pod that is not captured is no
    /// error.
    ///
    /// # Errors
    /// When a map or a pin cannot be written.
    pub fn withdraw(&self, cookie: NetnsCookie) -> Result<(), Error> {
        let maps = &self.maps;
        maps.pods
            .remove(&cookie.0)
            .map_err(failed(&maps.pods, "written"))?;
        // A connection that was captured a moment ago must still find the proxy's listener.
        std::thread::sleep(IN_FLIGHT);
        let pin = self.pins.netns(cookie);
        pins::detach(&pin)?;
        drop(self.links.take(&pin));
        self.instances().0.remove(&cookie);
        for kind in [LISTENER_INBOUND, LISTENER_OUTBOUND, LISTENER_DNS] {
            maps.listeners
                .remove(&listener_key(cookie, kind))
                .map_err(failed(&maps.listeners, "written"))?;
        }
        maps.remove_addresses(cookie, &[])
    }

    /// The captured namespaces, including those of an earlier proxy.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn enrolled(&self) -> Result<Vec<NetnsCookie>, Error> {
        let cookies = self.maps.pods.keys();
        let cookies = cookies.map_err(failed(&self.maps.pods, "read"))?;
        Ok(cookies.into_iter().map(NetnsCookie).collect())
    }
}
