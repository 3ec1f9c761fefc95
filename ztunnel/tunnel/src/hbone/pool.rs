//! The connection pool: chooses the connection that carries a tunnel, and dials another one if all
//! are full.
//!
//! A pool belongs to one worker thread. Connections are shared only by tunnels with the same
//! [`PoolKey`], whose first member is the source identity: bytes of two identities never share a
//! connection. [`Pool::open`] takes the first connection with a free stream slot; if all are full
//! it waits, and `group` decides which waiting request dials another connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite};

use super::config::Config;
use super::connection::{Connection, Dialled};
use super::error::{DialFailure, OpenError};
use super::group::Group;
use super::open_tunnel::{Retry, open_tunnel};
use super::request::Connect;
use super::tunnel::Tunnel;
use mesh::Identity;

/// The properties that tunnels must have in common to share a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// The identity whose certificate we present.
    pub source: Identity,
    /// The cookie of the source pod's network namespace, from which the connections start: a new
    /// pod with the same address has another one.
    pub netns: u64,
    /// The source pod's address.
    pub source_ip: IpAddr,
    /// The accepted identities: the peer must prove one of them.
    pub destinations: SmallVec<[Identity; 1]>,
    /// The peer's HBONE address.
    pub hbone: SocketAddr,
}

type Groups<E> = HashMap<PoolKey, Rc<Group<E>>, foldhash::fast::RandomState>;

/// The HBONE connections of one worker thread. `E` is the error type of the callers' dials.
pub struct Pool<E: 'static> {
    config: Rc<Config>,
    groups: RefCell<Groups<E>>,
}

impl<E: 'static> Pool<E> {
    /// An empty pool.
    #[must_use]
    pub fn new(config: Rc<Config>) -> Rc<Self> {
        Rc::new(Self {
            config,
            groups: RefCell::default(),
        })
    }

    /// Opens a tunnel on a pooled connection, or on a new one for which `dial` makes the byte
    /// stream (TCP and TLS). `dial` is called at most once, and its future runs in a task of its
    /// own. A CONNECT that is lost because its connection was closing is sent once more on another
    /// connection.
    ///
    /// Must run inside a `LocalSet`. Dropping the future resets the stream.
    ///
    /// # Errors
    /// When there is no connection, or the peer's response is not 200.
    pub async fn open<IO, F>(
        self: &Rc<Self>,
        key: &PoolKey,
        connect: &Connect,
        dial: impl FnOnce() -> F,
    ) -> Result<Tunnel, OpenError<E>>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
        F: Future<Output = Result<Dialled<IO>, E>> + 'static,
    {
        let group = self.group(key);
        let mut dial = Some(dial);
        let slot = match group.try_reserve(None) {
            Some(slot) => slot,
            None => group.wait(&mut dial, None).await.map_err(connection)?,
        };
        let failure = match open_tunnel(slot, connect, &self.config).await {
            Ok(tunnel) => return Ok(tunnel),
            Err(failure) if failure.retry == Retry::Never => return Err(failure.error),
            Err(failure) => failure,
        };
        tracing::debug!(
            reason = failure.error.reason(),
            "CONNECT failed before the peer processed it: retrying once on another connection"
        );
        // The group may have been removed from the pool with its last connection.
        let group = self.group(key);
        let slot = match group.try_reserve(Some(&failure.connection)) {
            Some(slot) => slot,
            None if dial.is_some() => group
                .wait(&mut dial, Some(failure.connection))
                .await
                .map_err(connection)?,
            None => {
                group.remove_if_unused();
                return Err(failure.error);
            }
        };
        open_tunnel(slot, connect, &self.config)
            .await
            .map_err(|failure| failure.error)
    }

    /// Retires the connections whose key matches: they carry no new tunnels; open tunnels may
    /// finish.
    pub fn evict(&self, matches: impl Fn(&PoolKey) -> bool) {
        self.for_each(matches, Connection::retire);
    }

    /// Ends the connections whose key matches at once; their tunnels see a lost connection.
    pub fn abort(&self, matches: impl Fn(&PoolKey) -> bool) {
        self.for_each(matches, Connection::abort);
    }

    /// The number of connections that may carry another tunnel, now or after one of theirs ends.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sum(|connections| {
            connections
                .iter()
                .filter(|connection| connection.is_open())
                .count()
        })
    }

    /// Whether [`Self::len`] is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of tunnels that are open or being opened.
    #[must_use]
    pub fn tunnels(&self) -> usize {
        self.sum(|connections| {
            connections
                .iter()
                .map(|connection| connection.active())
                .sum()
        })
    }

    #[cfg(test)]
    pub(crate) fn has_no_groups(&self) -> bool {
        self.groups.borrow().is_empty()
    }

    fn sum(&self, count: impl Fn(&[Rc<Connection>]) -> usize) -> usize {
        self.groups
            .borrow()
            .values()
            .map(|group| count(&group.connections()))
            .sum()
    }

    fn for_each(&self, matches: impl Fn(&PoolKey) -> bool, action: impl Fn(&Connection)) {
        let found: Vec<_> = (self.groups.borrow().values())
            .filter(|group| matches(group.key()))
            .flat_map(|group| group.connections())
            .collect();
        for connection in found {
            action(&connection);
        }
    }

    /// Removes an unused group, unless another group has replaced it.
    pub(crate) fn remove(&self, group: &Group<E>) {
        let mut groups = self.groups.borrow_mut();
        let is_this = |other: &Rc<Group<E>>| std::ptr::eq(&raw const **other, group);
        let found = groups.get(group.key()).is_some_and(is_this);
        let removed = if found {
            groups.remove(group.key())
        } else {
            None
        };
        drop(groups);
        // Dropped after the borrow has ended: dropping the group may call back into the pool.
        drop(removed);
    }

    fn group(self: &Rc<Self>, key: &PoolKey) -> Rc<Group<E>> {
        if let Some(group) = self.groups.borrow().get(key) {
            return Rc::clone(group);
        }
        let group = Group::new(key.clone(), self, Rc::clone(&self.config));
        self.groups
            .borrow_mut()
            .insert(key.clone(), Rc::clone(&group));
        group
    }
}

impl<E: 'static> std::fmt::Debug for Pool<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("groups", &self.groups.borrow().len())
            .finish_non_exhaustive()
    }
}

fn connection<E>(failure: DialFailure<E>) -> OpenError<E> {
    OpenError::Connection { failure }
}
