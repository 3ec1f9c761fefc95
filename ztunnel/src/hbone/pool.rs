//! The pool: which connection a tunnel rides on, and when another is dialled.
//!
//! A pool belongs to one worker thread. Connections are shared only by tunnels with the same
//! [`PoolKey`], whose first member is the source identity: bytes of two identities never meet on
//! one connection. An open takes the first connection with a free place; if all are full it
//! waits, and one dial is in flight for every `max_streams_per_connection` that wait. Dials run
//! in tasks of their own, so an open that is cancelled neither leaks a place nor ends a dial
//! that others wait for.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::client::{self, Connection, Owner, Slot};
use super::config::Config;
use super::error::{DialFailure, OpenError};
use super::opening::{self, Retry};
use super::request::Connect;
use super::tunnel::Tunnel;
use crate::mesh::Identity;

/// What tunnels must have in common to share a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// Whose certificate we present.
    pub source: Identity,
    /// The source pod's address: connections leave from its network namespace.
    pub source_ip: IpAddr,
    /// The identities of which the peer must show one.
    pub destinations: SmallVec<[Identity; 1]>,
    /// Where the peer listens for HBONE.
    pub hbone: SocketAddr,
}

type Groups<E> = HashMap<PoolKey, Rc<Group<E>>, foldhash::fast::RandomState>;

/// The HBONE connections of one worker thread. `E` is the error of its callers' dials.
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
    /// own. A CONNECT that is lost with a connection that was just going away is sent once more
    /// on another.
    ///
    /// Must run inside a `LocalSet`. Dropping the future resets the stream.
    ///
    /// # Errors
    /// When there is no connection, or the peer does not answer with 200.
    pub async fn open<IO, F>(
        self: &Rc<Self>,
        key: &PoolKey,
        connect: &Connect,
        dial: impl FnOnce() -> F,
    ) -> Result<Tunnel, OpenError<E>>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
        F: Future<Output = Result<IO, E>> + 'static,
    {
        let group = self.group(key);
        let mut dial = Some(dial);
        let slot = match group.take(None) {
            Some(slot) => slot,
            None => group.wait(&mut dial, None).await.map_err(connection)?,
        };
        let failure = match opening::open(slot, connect, &self.config).await {
            Ok(tunnel) => return Ok(tunnel),
            Err(failure) if failure.retry == Retry::No => return Err(failure.error),
            Err(failure) => failure,
        };
        tracing::debug!(
            reason = failure.error.reason(),
            "asking again on another connection"
        );
        // The group may have been forgotten with its last connection.
        let group = self.group(key);
        let slot = match group.take(Some(&failure.connection)) {
            Some(slot) => slot,
            None if dial.is_some() => group
                .wait(&mut dial, Some(failure.connection))
                .await
                .map_err(connection)?,
            None => {
                group.forget_if_unused();
                return Err(failure.error);
            }
        };
        opening::open(slot, connect, &self.config)
            .await
            .map_err(|failure| failure.error)
    }

    /// Lets go of the connections whose key matches: no new tunnels, open ones may finish.
    pub fn evict(&self, matches: impl Fn(&PoolKey) -> bool) {
        self.each(matches, Connection::retire);
    }

    /// Ends the connections whose key matches under their tunnels, which see a lost connection.
    pub fn abort(&self, matches: impl Fn(&PoolKey) -> bool) {
        self.each(matches, Connection::abort);
    }

    /// Connections that may carry another tunnel, now or when one of theirs ends.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sum(|connections| {
            connections
                .iter()
                .filter(|connection| connection.is_open())
                .count()
        })
    }

    /// Whether there is no such connection.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tunnels open or being opened.
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
    pub(crate) fn groups_are_forgotten(&self) -> bool {
        self.groups.borrow().is_empty()
    }

    fn sum(&self, count: impl Fn(&[Rc<Connection>]) -> usize) -> usize {
        self.groups
            .borrow()
            .values()
            .map(|group| count(&group.state.borrow().connections))
            .sum()
    }

    fn each(&self, matches: impl Fn(&PoolKey) -> bool, what: impl Fn(&Connection)) {
        let found: Vec<_> = (self.groups.borrow().values())
            .filter(|group| matches(&group.key))
            .flat_map(|group| group.state.borrow().connections.clone())
            .collect();
        for connection in found {
            what(&connection);
        }
    }

    fn group(self: &Rc<Self>, key: &PoolKey) -> Rc<Group<E>> {
        if let Some(group) = self.groups.borrow().get(key) {
            return Rc::clone(group);
        }
        let group = Rc::new_cyclic(|this| Group {
            this: Weak::clone(this),
            key: key.clone(),
            pool: Rc::downgrade(self),
            config: Rc::clone(&self.config),
            state: RefCell::new(State::default()),
        });
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

/// The connections of one key and who waits for them.
struct Group<E: 'static> {
    this: Weak<Self>,
    key: PoolKey,
    pool: Weak<Pool<E>>,
    config: Rc<Config>,
    state: RefCell<State<E>>,
}

struct State<E: 'static> {
    connections: Vec<Rc<Connection>>,
    /// Dials in flight, or granted to an open that has not begun yet.
    dialing: usize,
    waiting: VecDeque<Waiter<E>>,
}

impl<E: 'static> Default for State<E> {
    fn default() -> Self {
        Self {
            connections: Vec::new(),
            dialing: 0,
            waiting: VecDeque::new(),
        }
    }
}

impl<E> State<E> {
    fn take(&self, but: Option<&Rc<Connection>>) -> Option<Slot> {
        let fits = |this: &&Rc<Connection>| !but.is_some_and(|but| Rc::ptr_eq(but, this));
        self.connections
            .iter()
            .filter(fits)
            .find_map(Connection::take)
    }
}

/// An open without a place.
struct Waiter<E: 'static> {
    grant: oneshot::Sender<Grant<E>>,
    can: Can,
    /// Where it was refused before.
    but: Option<Rc<Connection>>,
}

/// What a waiting open can still do itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Can {
    Dial,
    /// Its dial is in flight.
    Wait,
}

/// What becomes of a waiting open.
enum Grant<E: 'static> {
    Place(Slot),
    Dial(Permit<E>),
    Failed(DialFailure<E>),
}

/// The right to dial, given back when the dial has ended or never began.
struct Permit<E: 'static> {
    group: Rc<Group<E>>,
}

impl<E: 'static> Drop for Permit<E> {
    fn drop(&mut self) {
        self.group.state.borrow_mut().dialing -= 1;
        self.group.settle();
    }
}

impl<E: 'static> Group<E> {
    /// The first connection with a free place, those that are over set aside.
    fn take(&self, but: Option<&Rc<Connection>>) -> Option<Slot> {
        self.state.borrow().take(but)
    }

    /// Waits for a place, dialling when told to.
    async fn wait<IO, F>(
        self: &Rc<Self>,
        dial: &mut Option<impl FnOnce() -> F>,
        but: Option<Rc<Connection>>,
    ) -> Result<Slot, DialFailure<E>>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
        F: Future<Output = Result<IO, E>> + 'static,
    {
        let mut granted = self.queue(Can::Dial, but.clone());
        self.settle();
        loop {
            // Longer than any dial: a net under the accounting, and the bound on waiting for a
            // place on a peer that allows too few streams.
            let patience = 2 * self.config.connect_timeout;
            match tokio::time::timeout(patience, granted).await {
                Ok(Ok(Grant::Place(slot))) => return Ok(slot),
                Ok(Ok(Grant::Failed(failure))) => return Err(failure),
                Ok(Ok(Grant::Dial(permit))) => {
                    let Some(dial) = dial.take() else {
                        return Err(DialFailure::Abandoned);
                    };
                    // Queued before the dial starts, in front: the place it makes is for us.
                    granted = self.queue(Can::Wait, but.clone());
                    tokio::task::spawn_local(run_dial(permit, dial()));
                }
                Ok(Err(_dropped)) => return Err(DialFailure::Abandoned),
                Err(_elapsed) => return Err(DialFailure::DialTimeout { after: patience }),
            }
        }
    }

    fn queue(&self, can: Can, but: Option<Rc<Connection>>) -> oneshot::Receiver<Grant<E>> {
        let (grant, granted) = oneshot::channel();
        let waiting = &mut self.state.borrow_mut().waiting;
        match can {
            Can::Dial => waiting.push_back(Waiter { grant, can, but }),
            Can::Wait => waiting.push_front(Waiter { grant, can, but }),
        }
        granted
    }

    /// Gives what there is to those who wait, until there is nothing to give.
    fn settle(&self) {
        while let Some((waiter, grant)) = self.next_grant() {
            // It cannot fail: the waiter was there, and nothing ran in between.
            drop(waiter.grant.send(grant));
        }
        self.forget_if_unused();
    }

    fn next_grant(&self) -> Option<(Waiter<E>, Grant<E>)> {
        let group = self.this.upgrade()?;
        let mut state = self.state.borrow_mut();
        // Whoever is gone must not be given a place, nor count as a reason to dial.
        while state
            .waiting
            .front()
            .is_some_and(|waiter| waiter.grant.is_closed())
        {
            state.waiting.pop_front();
        }
        if state.waiting.is_empty() {
            return None;
        }
        let but = state.waiting.front().and_then(|waiter| waiter.but.clone());
        if let Some(slot) = state.take(but.as_ref()) {
            return Some((state.waiting.pop_front()?, Grant::Place(slot)));
        }
        // A connection whose SETTINGS are on their way will have places like one being dialled.
        let coming = state
            .connections
            .iter()
            .filter(|connection| connection.is_unsettled());
        let coming = state.dialing + coming.count();
        let served = coming * self.config.max_streams_per_connection.max(1);
        if state.waiting.len() <= served {
            return None;
        }
        state.waiting.retain(|waiter| !waiter.grant.is_closed());
        if state.waiting.len() <= served {
            return None;
        }
        let dialler = state
            .waiting
            .iter()
            .position(|waiter| waiter.can == Can::Dial)?;
        state.dialing += 1;
        Some((
            state.waiting.remove(dialler)?,
            Grant::Dial(Permit { group }),
        ))
    }

    /// A dial failed: so have those who waited for it.
    fn fail(&self, failure: &DialFailure<E>) {
        let failed: Vec<_> = {
            let mut state = self.state.borrow_mut();
            // Only this dial is in flight: nobody else is coming.
            let share = if state.dialing <= 1 {
                usize::MAX
            } else {
                self.config.max_streams_per_connection.max(1)
            };
            let share = share.min(state.waiting.len());
            state.waiting.drain(..share).collect()
        };
        for waiter in failed {
            drop(waiter.grant.send(Grant::Failed(failure.clone())));
        }
    }

    fn forget_if_unused(&self) {
        let state = self.state.borrow();
        let unused = state.connections.is_empty() && state.waiting.is_empty() && state.dialing == 0;
        drop(state);
        let Some(pool) = self.pool.upgrade().filter(|_| unused) else {
            return;
        };
        let mut groups = pool.groups.borrow_mut();
        // It may have been forgotten and made again.
        let is_this = groups
            .get(&self.key)
            .is_some_and(|group| std::ptr::eq(&raw const **group, self));
        let forgotten = if is_this {
            groups.remove(&self.key)
        } else {
            None
        };
        drop(groups);
        drop(forgotten);
    }
}

impl<E: 'static> Owner for Group<E> {
    fn released(&self) {
        if !self.state.borrow().waiting.is_empty() {
            self.settle();
        }
    }

    fn ended(&self, connection: &Connection) {
        self.state
            .borrow_mut()
            .connections
            .retain(|other| !std::ptr::eq(&raw const **other, connection));
        self.settle();
    }
}

/// One dial: the caller's byte stream, then HTTP/2 on it.
async fn run_dial<IO, E, F>(permit: Permit<E>, dial: F)
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    F: Future<Output = Result<IO, E>> + 'static,
    E: 'static,
{
    let group = Rc::clone(&permit.group);
    let config = &group.config;
    let dialled = async {
        let io = match tokio::time::timeout(config.connect_timeout, dial).await {
            Ok(Ok(io)) => io,
            Ok(Err(error)) => {
                return Err(DialFailure::Dial {
                    error: Arc::new(error),
                });
            }
            Err(_elapsed) => {
                return Err(DialFailure::DialTimeout {
                    after: config.connect_timeout,
                });
            }
        };
        let owner: Weak<dyn Owner> = group.this.clone();
        let handshake = client::handshake(io, config, owner);
        match tokio::time::timeout(config.handshake_timeout, handshake).await {
            Ok(connection) => connection.map_err(|error| DialFailure::Handshake {
                error: Arc::new(error),
            }),
            Err(_elapsed) => Err(DialFailure::DialTimeout {
                after: config.handshake_timeout,
            }),
        }
    };
    match dialled.await {
        Ok(connection) => group.state.borrow_mut().connections.push(connection),
        Err(failure) => group.fail(&failure),
    }
    // Giving the permit back hands the new places out.
    drop(permit);
}
