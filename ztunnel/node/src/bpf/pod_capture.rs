//! Which pods the programs capture.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use ztunnel_ebpf_types::{Address, POD_ARRIVING, POD_DNS, POD_ENROLLED, Pod};

use super::maps::failed;
use super::programs::{self, INBOUND};
use super::{Error, Installed, Kernel, pins};
use mesh::NetnsCookie;

/// A pod to capture.
#[derive(Debug, Clone, Copy)]
pub struct PodCapture<'a> {
    /// The pod's network namespace.
    pub cookie: NetnsCookie,
    /// The namespace's file.
    pub netns: BorrowedFd<'a>,
    /// All of the pod's addresses. Captured sockets are bound to the first address of their family.
    pub addresses: &'a [IpAddr],
    /// The proxy's inbound listener in the pod: listening and dual stack. Any member of a
    /// `SO_REUSEPORT` group will do.
    pub inbound: BorrowedFd<'a>,
    /// Whether the pod's DNS queries go to the proxy's DNS listeners.
    pub dns: bool,
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
        let listener = pod.inbound.as_raw_fd().cast_unsigned();
        self.mark_listener(pod.inbound)
            .map_err(failed(&maps.socket_states, "written"))?;
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
        maps.remove_addresses(cookie, &addresses)?;
        let object = self.object();
        programs::attach_netns(object.program(INBOUND)?, pod.netns, cookie, self.hooks())?;
        drop(object);
        if pod.dns {
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
            flags: POD_ENROLLED | arriving | if pod.dns { POD_DNS } else { 0 },
        };
        maps.pods
            .insert(&cookie.0, &entry)
            .map_err(failed(&maps.pods, "written"))
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
        let object = self.object();
        programs::attach_netns(object.program(INBOUND)?, netns, cookie, self.hooks())
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
        let pin = self.pins.netns(cookie);
        pins::detach(&pin)?;
        drop(self.links.take(&pin));
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
