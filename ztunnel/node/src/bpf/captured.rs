//! Captured connections, as the proxy sees them at accept.

use std::net::{IpAddr, SocketAddr};

use ztunnel_ebpf_types::{
    CAPTURED_BOUND, CAPTURED_OPTIONS, CAPTURED_UNLISTED, CapturedKey, flags_of_mark,
};

use super::maps::{client_key, failed};
use super::{Error, Kernel};
use mesh::NetnsCookie;

/// The backends of a service that a captured connection may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendChoice {
    /// All backends.
    Any,
    /// Only those that the fast-path entry does not list: the kernel's random choice fell on them.
    Unlisted,
}

/// A captured connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapturedDestination {
    /// The address that the application dialled.
    pub destination: SocketAddr,
    /// Which backends the proxy may choose.
    pub choice: BackendChoice,
    /// The application's socket.
    pub application: ApplicationSocket,
}

/// What an application has chosen for its socket. A connection that the proxy opens in its place to a
/// destination outside of a tunnel leaves in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ApplicationSocket {
    /// The address that it has bound the socket to.
    pub source: Option<IpAddr>,
    /// Its mark (`SO_MARK`), or 0.
    pub mark: u32,
    /// The index of its device (`SO_BINDTODEVICE`), or 0.
    pub device: u32,
}

const fn choice(flags: u32) -> BackendChoice {
    if flags & CAPTURED_UNLISTED == 0 {
        BackendChoice::Any
    } else {
        BackendChoice::Unlisted
    }
}

impl Kernel {
    /// The original destination of a connection that the version before has captured, by its client's
    /// end as `accept()` returns it. The first call removes the entry. None: a client connected to the
    /// proxy's port directly. Connections that this version captures need no lookup.
    ///
    /// One system call; meant for every connection.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn original_destination(
        &self,
        cookie: NetnsCookie,
        client: SocketAddr,
    ) -> Result<Option<CapturedDestination>, Error> {
        let key = client_key(cookie, client);
        let destinations = &self.maps.original_destinations;
        let found = destinations.take(&key);
        let found = found.map_err(failed(destinations, "read"))?;
        Ok(found.and_then(|destination| {
            let port = u16::try_from(destination.port).ok()?;
            Some(CapturedDestination {
                destination: SocketAddr::new(destination.address.into(), port),
                choice: choice(destination.flags),
                application: ApplicationSocket::default(),
            })
        }))
    }

    /// What the programs know about a captured connection, by its two ends and the mark of its accepted
    /// socket. A further system call is needed only if the application has set a mark or a device. None:
    /// it has, but there is no entry: too many such connections wait to be accepted.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn captured(
        &self,
        pod: NetnsCookie,
        client: SocketAddr,
        destination: SocketAddr,
        mark: u32,
    ) -> Result<Option<CapturedDestination>, Error> {
        let flags = flags_of_mark(mark);
        let mut application = ApplicationSocket {
            source: (flags & CAPTURED_BOUND != 0).then(|| client.ip()),
            ..ApplicationSocket::default()
        };
        if flags & CAPTURED_OPTIONS != 0 {
            let key = CapturedKey {
                pod: pod.0,
                client: client.ip().into(),
                server: destination.ip().into(),
                client_port: client.port().into(),
                server_port: destination.port().into(),
            };
            let sockets = &self.maps.captured_sockets;
            let found = sockets.take(&key).map_err(failed(sockets, "read"))?;
            let Some(found) = found else {
                return Ok(None);
            };
            (application.mark, application.device) = (found.mark, found.device);
        }
        Ok(Some(CapturedDestination {
            destination,
            choice: choice(flags),
            application,
        }))
    }
}
