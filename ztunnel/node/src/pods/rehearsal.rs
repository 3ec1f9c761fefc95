//! A trial of the proxy's work in a pod's network namespace, in a temporary namespace.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};

use super::destroy::{Connection, Destroyed, destroy};
use super::dial::bind_to_client;
use super::netlink::set_loopback_up;
use super::{DestroyError, Error, Listeners, OptionalListener, routing};

/// An address for documentation (RFC 5737), which no interface has.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// The results of the trial.
#[derive(Debug)]
pub struct Rehearsal {
    netns: File,
    /// Opening the listeners.
    pub listeners: Result<(), Error>,
    /// Setting up delivery, and delivering a connection with its client's address.
    pub delivery: Result<(), Error>,
    /// Destroying that connection; none if it could not be delivered.
    pub destroyed: Option<Result<Destroyed, DestroyError>>,
}

impl AsFd for Rehearsal {
    /// The namespace.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }
}

/// Runs the trial on a thread of its own. It takes milliseconds, or half a second if the delivery gets
/// lost.
///
/// # Errors
/// When a namespace cannot be created.
pub fn rehearse() -> Result<Rehearsal, Error> {
    thread::scope(|scope| scope.spawn(in_new_namespace).join()).map_err(|_panic| Error::Thread)?
}

fn in_new_namespace() -> Result<Rehearsal, Error> {
    let create = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        set_loopback_up()?;
        File::open("/proc/thread-self/ns/net")
    };
    let netns = create().map_err(|source| Error::Make { source })?;
    let listeners = Listeners::open(1, &[OptionalListener::Dns], None).map(drop);
    let mut destroyed = None;
    let delivery = routing::prepare_delivery().and_then(|_prepared| {
        let delivered = deliver().map_err(|source| Error::Deliver { source })?;
        destroyed = Some(destroy(&[delivered.connection]));
        Ok(())
    });
    Ok(Rehearsal {
        netns,
        listeners,
        delivery,
        destroyed,
    })
}

/// A connection and its two open ends.
struct Delivered {
    connection: Connection,
    _ends: (Socket, TcpStream),
}

fn deliver() -> io::Result<Delivered> {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let local = server.local_addr()?;
    let client = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    bind_to_client(&client, (CLIENT, 0).into())?;
    client.connect_timeout(&local.into(), CONNECT_TIMEOUT)?;
    let (accepted, remote) = server.accept()?;
    if remote.ip() != CLIENT {
        let problem = format!(
            "the application sees the client address {}, expected {CLIENT}",
            remote.ip()
        );
        return Err(io::Error::other(problem));
    }
    Ok(Delivered {
        connection: Connection {
            local,
            remote,
            cookie: None,
        },
        _ends: (client, accepted),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::{DestroyMethod, Outcome};

    #[test]
    #[ignore = "needs root"]
    fn everything_works_on_this_kernel() {
        let found = rehearse().unwrap();
        found.listeners.unwrap();
        found.delivery.unwrap();
        let destroyed = found.destroyed.unwrap().unwrap();
        assert_eq!(destroyed.method, DestroyMethod::Kernel);
        assert!(matches!(destroyed.outcomes[..], [Outcome::Destroyed]));
    }
}
