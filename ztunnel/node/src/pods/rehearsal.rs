//! What the proxy does in a pod's namespace, done once in a namespace that nobody uses: it is made
//! for that and gone afterwards.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};

use super::destroy::{Connection, Destroyed, destroy};
use super::socket::spoof;
use super::{DestroyError, Error, Extra, Listeners, delivery};

/// An address of the documentation (RFC 5737), which no interface has.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const PATIENCE: Duration = Duration::from_millis(500);

/// What has worked.
#[derive(Debug)]
pub struct Rehearsal {
    netns: File,
    /// Opening the listeners.
    pub listeners: Result<(), Error>,
    /// Rules, routes and settings, and a connection that bears its client's address.
    pub delivery: Result<(), Error>,
    /// Destroying that connection; none if there was none.
    pub destroyed: Option<Result<Destroyed, DestroyError>>,
}

impl AsFd for Rehearsal {
    /// The namespace.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }
}

/// Tries it on a thread of its own. Takes milliseconds, half a second where a delivery gets lost.
///
/// # Errors
/// When no namespace can be made.
pub fn rehearse() -> Result<Rehearsal, Error> {
    thread::scope(|scope| scope.spawn(in_a_new_namespace).join()).map_err(|_panic| Error::Thread)?
}

fn in_a_new_namespace() -> Result<Rehearsal, Error> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        delivery::raise_loopback()?;
        File::open("/proc/thread-self/ns/net")
    };
    let netns = make().map_err(|source| Error::Make { source })?;
    let listeners = Listeners::open(1, &[Extra::Dns]).map(drop);
    let mut destroyed = None;
    let delivery = delivery::prepare().and_then(|()| {
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

/// A connection with both its ends.
struct Delivered {
    connection: Connection,
    _ends: (Socket, TcpStream),
}

fn deliver() -> io::Result<Delivered> {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let local = server.local_addr()?;
    let client = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    spoof(&client, CLIENT)?;
    client.connect_timeout(&local.into(), PATIENCE)?;
    let (accepted, remote) = server.accept()?;
    if remote.ip() != CLIENT {
        let problem = format!("the application sees {} instead of {CLIENT}", remote.ip());
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
