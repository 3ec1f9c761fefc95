//! Ends TCP connections that are no longer allowed, from inside the network namespace of one of
//! their ends.
//!
//! The first way is the kernel's own, `SOCK_DESTROY` (`diag`). A kernel built without it
//! (`CONFIG_INET_DIAG_DESTROY`) is helped out with packets: `provoke` makes the socket say at
//! which sequence numbers it is, and sends both ends the reset that fits. Either way both ends
//! see the connection break at once, and nobody else's connection is touched: a connection is
//! looked up first, and what is destroyed is that very socket, told by its cookie. Without that a
//! connection that has just gone would be taken for the listener of its port.
//!
//! Called by `node` after the mesh changed, by way of [`Netns::visit`](super::Netns::visit). It
//! blocks for milliseconds, at worst for [`PATIENCE`].

mod diag;
mod error;
mod provoke;
mod segment;
mod sniffer;

pub use error::{Error, Failure};

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use self::diag::{Diag, Found};

/// How long destroying with packets takes at most, for up to 5,000 connections; without them the
/// kernel does it while the call lasts.
const PATIENCE: Duration = Duration::from_millis(400);

/// A TCP connection, seen from one of its ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The end in the calling thread's namespace.
    pub local: SocketAddr,
    /// The other one.
    pub remote: SocketAddr,
    /// The kernel's number for the socket (`SO_COOKIE`), where it is known. A later connection
    /// between the same addresses is then left alone.
    pub cookie: Option<NonZeroU64>,
}

impl Connection {
    /// Without v4-mapped addresses: the kernel's table has such sockets among those of IPv4.
    fn canonical(self) -> Self {
        let plain = |address: SocketAddr| match address {
            SocketAddr::V4(_) => address,
            SocketAddr::V6(v6) => SocketAddr::new(v6.ip().to_canonical(), v6.port()),
        };
        Self {
            local: plain(self.local),
            remote: plain(self.remote),
            cookie: self.cookie,
        }
    }
}

/// What became of one connection.
#[derive(Debug)]
pub enum Outcome {
    /// It was there, and is not any more.
    Destroyed,
    /// It was not there.
    Gone,
    /// It is still there.
    Failed(Failure),
}

/// What became of all of them, in the order in which they were given.
#[derive(Debug)]
pub struct Destroyed {
    /// One for each connection.
    pub outcomes: Vec<Outcome>,
    /// How it was done.
    pub method: DestroyMethod,
}

/// How connections are destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DestroyMethod {
    /// By the kernel: `SOCK_DESTROY`.
    Kernel,
    /// By resets that fit, because the kernel cannot.
    Packets,
}

/// A connection that is to be destroyed, and its socket.
#[derive(Debug, Clone, Copy)]
struct ListedSocket {
    connection: Connection,
    found: Found,
}

/// Destroys the connections of the calling thread's namespace. One that is gone already is no
/// error.
///
/// # Errors
/// When the kernel refuses to be asked at all; what happened to each connection is not known.
pub fn destroy(connections: &[Connection]) -> Result<Destroyed, Error> {
    destroy_by(DestroyMethod::Kernel, connections)
}

fn destroy_by(method: DestroyMethod, connections: &[Connection]) -> Result<Destroyed, Error> {
    let connections: Vec<_> = connections.iter().map(|one| one.canonical()).collect();
    let mut diag = Diag::open()?;
    let mut outcomes: Vec<Outcome> = connections.iter().map(|_| Outcome::Gone).collect();
    let found = diag.find(&connections)?;
    let (places, targets): (Vec<usize>, Vec<ListedSocket>) = found
        .into_iter()
        .zip(connections)
        .enumerate()
        .filter_map(|(at, (found, connection))| {
            found.map(|found| (at, ListedSocket { connection, found }))
        })
        .unzip();
    let (method, ended) = match method {
        DestroyMethod::Kernel => by_the_kernel(&mut diag, &targets)?,
        DestroyMethod::Packets => (method, provoke::reset(&mut diag, &targets)?),
    };
    for (at, outcome) in places.into_iter().zip(ended) {
        if let Some(place) = outcomes.get_mut(at) {
            *place = outcome;
        }
    }
    Ok(Destroyed { outcomes, method })
}

/// Falls back to packets where the kernel cannot.
fn by_the_kernel(
    diag: &mut Diag,
    targets: &[ListedSocket],
) -> Result<(DestroyMethod, Vec<Outcome>), Error> {
    let mut outcomes = Vec::with_capacity(targets.len());
    for answer in diag.destroy(targets)? {
        outcomes.push(match answer {
            Ok(()) => Outcome::Destroyed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Outcome::Gone,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                return Ok((DestroyMethod::Packets, provoke::reset(diag, targets)?));
            }
            Err(source) => Outcome::Failed(Failure::Refused { source }),
        });
    }
    Ok((DestroyMethod::Kernel, outcomes))
}

#[cfg(test)]
mod tests;
