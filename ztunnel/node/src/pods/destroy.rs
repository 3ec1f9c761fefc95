//! Destroys TCP connections that are no longer allowed, from inside the network namespace of one of
//! their ends.
//!
//! The preferred way is the kernel's `SOCK_DESTROY` (`diag`). For kernels without it
//! (`CONFIG_INET_DIAG_DESTROY`), `by_packets` makes the socket reveal its sequence numbers and sends
//! both ends a fitting reset. Either way both ends see a reset at once, and no other connection is
//! affected: a connection is looked up first, and exactly that socket is destroyed, identified by its
//! cookie. Without the cookie the kernel would take the listener of the port for a connection that
//! has just ended.
//!
//! The fast path calls this after a change of the mesh, through
//! [`Netns::visit`](super::Netns::visit). It blocks for milliseconds, at worst for
//! [`PACKETS_TIMEOUT`].

mod by_packets;
pub(super) mod diag;
mod error;
mod segment;
mod sniffer;

pub use error::{Error, Failure};

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use self::diag::{Diag, FoundSocket};

/// The longest time to destroy up to 5,000 connections with packets.
const PACKETS_TIMEOUT: Duration = Duration::from_millis(400);

/// A TCP connection, seen from one of its ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The end in the calling thread's network namespace.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// The kernel's number for the socket (`SO_COOKIE`), if known. It protects a later connection
    /// between the same addresses.
    pub cookie: Option<NonZeroU64>,
}

impl Connection {
    /// Without v4-mapped addresses: the kernel lists such sockets as IPv4.
    fn canonical(self) -> Self {
        let canonical = |address: SocketAddr| match address {
            SocketAddr::V4(_) => address,
            SocketAddr::V6(v6) => SocketAddr::new(v6.ip().to_canonical(), v6.port()),
        };
        Self {
            local: canonical(self.local),
            remote: canonical(self.remote),
            cookie: self.cookie,
        }
    }
}

/// The result for one connection.
#[derive(Debug)]
pub enum Outcome {
    /// It existed and was destroyed.
    Destroyed,
    /// It did not exist.
    Gone,
    /// It still exists.
    Failed(Failure),
}

/// The results for all connections, in the order of the request.
#[derive(Debug)]
pub struct Destroyed {
    /// One for each connection.
    pub outcomes: Vec<Outcome>,
    /// How they were destroyed.
    pub method: DestroyMethod,
}

/// How connections are destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DestroyMethod {
    /// By the kernel: `SOCK_DESTROY`.
    Kernel,
    /// By resets with the right sequence numbers, on kernels without `SOCK_DESTROY`.
    Packets,
}

/// A connection to destroy, and its socket in the kernel's table.
#[derive(Debug, Clone, Copy)]
struct ListedSocket {
    connection: Connection,
    found: FoundSocket,
}

/// Destroys connections of the calling thread's network namespace. A connection that does not exist
/// is no error.
///
/// # Errors
/// When the exchange with the kernel fails; the result for each connection is unknown then.
pub fn destroy(connections: &[Connection]) -> Result<Destroyed, Error> {
    destroy_by(DestroyMethod::Kernel, connections)
}

fn destroy_by(method: DestroyMethod, connections: &[Connection]) -> Result<Destroyed, Error> {
    let connections: Vec<_> = connections.iter().map(|one| one.canonical()).collect();
    let mut diag = Diag::open()?;
    let mut outcomes: Vec<Outcome> = connections.iter().map(|_| Outcome::Gone).collect();
    let found = diag.find(&connections)?;
    let (positions, sockets): (Vec<usize>, Vec<ListedSocket>) = found
        .into_iter()
        .zip(connections)
        .enumerate()
        .filter_map(|(at, (found, connection))| {
            found.map(|found| (at, ListedSocket { connection, found }))
        })
        .unzip();
    let (method, results) = match method {
        DestroyMethod::Kernel => by_kernel(&mut diag, &sockets)?,
        DestroyMethod::Packets => (method, by_packets::destroy(&mut diag, &sockets)?),
    };
    for (at, result) in positions.into_iter().zip(results) {
        if let Some(outcome) = outcomes.get_mut(at) {
            *outcome = result;
        }
    }
    Ok(Destroyed { outcomes, method })
}

/// Destroys sockets by the kernel; falls back to packets on a kernel without `SOCK_DESTROY`.
fn by_kernel(
    diag: &mut Diag,
    sockets: &[ListedSocket],
) -> Result<(DestroyMethod, Vec<Outcome>), Error> {
    let mut outcomes = Vec::with_capacity(sockets.len());
    for answer in diag.destroy(sockets)? {
        outcomes.push(match answer {
            Ok(()) => Outcome::Destroyed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Outcome::Gone,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                let outcomes = by_packets::destroy(diag, sockets)?;
                return Ok((DestroyMethod::Packets, outcomes));
            }
            Err(source) => Outcome::Failed(Failure::Refused { source }),
        });
    }
    Ok((DestroyMethod::Kernel, outcomes))
}

#[cfg(test)]
mod tests;
