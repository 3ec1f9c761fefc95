//! The connections of one key: which open gets a slot on them, and which open must dial.
//!
//! An open that finds no slot waits in this queue. One dial is in flight for every
//! `max_streams_per_connection` waiting opens. It runs in a task of its own, so a cancelled open
//! neither leaks a slot nor ends a dial that other opens wait for. A grant to a cancelled open is
//! returned when it is dropped ([`Slot`], [`Permit`]).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::client::{self, Connection, Dialled, Owner, Slot};
use super::config::Config;
use super::error::DialFailure;
use super::pool::{Pool, PoolKey};

/// The connections of one key and the opens that wait for a slot on them.
pub(crate) struct Group<E: 'static> {
    this: Weak<Self>,
    key: PoolKey,
    pool: Weak<Pool<E>>,
    config: Rc<Config>,
    state: RefCell<State<E>>,
}

struct State<E: 'static> {
    connections: Vec<Rc<Connection>>,
    /// Dials that are in flight, or granted to an open that has not started yet.
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

/// An open without a slot.
struct Waiter<E: 'static> {
    grant: oneshot::Sender<Grant<E>>,
    can: Can,
    /// The connection on which it failed before.
    but: Option<Rc<Connection>>,
}

/// Whether a waiting open can still dial.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Can {
    Dial,
    /// Its dial is in flight.
    Wait,
}

/// The outcome for a waiting open.
enum Grant<E: 'static> {
    Place(Slot),
    Dial(Permit<E>),
    Failed(DialFailure<E>),
}

/// The permission to dial. It is returned when the dial has ended or is never started.
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
    pub(crate) fn new(key: PoolKey, pool: &Rc<Pool<E>>, config: Rc<Config>) -> Rc<Self> {
        Rc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            key,
            pool: Rc::downgrade(pool),
            config,
            state: RefCell::default(),
        })
    }

    pub(crate) fn key(&self) -> &PoolKey {
        &self.key
    }

    pub(crate) fn connections(&self) -> Vec<Rc<Connection>> {
        self.state.borrow().connections.clone()
    }

    /// The first open connection with a free slot, other than `but`.
    pub(crate) fn take(&self, but: Option<&Rc<Connection>>) -> Option<Slot> {
        self.state.borrow().take(but)
    }

    /// Waits for a slot, and dials when the group grants the dial.
    pub(crate) async fn wait<IO, F>(
        self: &Rc<Self>,
        dial: &mut Option<impl FnOnce() -> F>,
        but: Option<Rc<Connection>>,
    ) -> Result<Slot, DialFailure<E>>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
        F: Future<Output = Result<Dialled<IO>, E>> + 'static,
    {
        let mut granted = self.queue(Can::Dial, but.clone());
        self.settle();
        loop {
            // Longer than any dial. It protects against an accounting error, and bounds the wait
            // for a slot on a peer that allows too few streams.
            let patience = 2 * self.config.connect_timeout;
            match tokio::time::timeout(patience, granted).await {
                Ok(Ok(Grant::Place(slot))) => return Ok(slot),
                Ok(Ok(Grant::Failed(failure))) => return Err(failure),
                Ok(Ok(Grant::Dial(permit))) => {
                    let Some(dial) = dial.take() else {
                        return Err(DialFailure::Abandoned);
                    };
                    // Queued in front before the dial starts: this open gets the first slot of the
                    // new connection.
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

    /// Grants free slots and dials to the waiting opens until no further grant is possible.
    fn settle(&self) {
        while let Some((waiter, grant)) = self.next_grant() {
            // The send cannot fail: the waiter was checked, and no other task ran in between.
            drop(waiter.grant.send(grant));
        }
        self.forget_if_unused();
    }

    fn next_grant(&self) -> Option<(Waiter<E>, Grant<E>)> {
        let group = self.this.upgrade()?;
        let mut state = self.state.borrow_mut();
        // A cancelled open must not get a slot, and is no reason to dial.
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
        // A connection that waits for SETTINGS will have slots, just like one that is being
        // dialled.
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

    /// A dial failed: the opens that waited for it fail as well.
    fn fail(&self, failure: &DialFailure<E>) {
        let failed: Vec<_> = {
            let mut state = self.state.borrow_mut();
            // No other dial is in flight, so all waiting opens fail.
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

    pub(crate) fn forget_if_unused(&self) {
        let state = self.state.borrow();
        let unused = state.connections.is_empty() && state.waiting.is_empty() && state.dialing == 0;
        drop(state);
        if let Some(pool) = self.pool.upgrade().filter(|_| unused) {
            pool.forget(self);
        }
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

/// Runs one dial: the caller's byte stream, then HTTP/2 on it.
async fn run_dial<IO, E, F>(permit: Permit<E>, dial: F)
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    F: Future<Output = Result<Dialled<IO>, E>> + 'static,
    E: 'static,
{
    let group = Rc::clone(&permit.group);
    let config = &group.config;
    let dialled = async {
        let Dialled { stream, revoking } =
            match tokio::time::timeout(config.connect_timeout, dial).await {
                Ok(Ok(dialled)) => dialled,
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
        let handshake = client::handshake(stream, config, owner);
        let connection = match tokio::time::timeout(config.handshake_timeout, handshake).await {
            Ok(connection) => connection.map_err(|error| DialFailure::Handshake {
                error: Arc::new(error),
            })?,
            Err(_elapsed) => {
                return Err(DialFailure::DialTimeout {
                    after: config.handshake_timeout,
                });
            }
        };
        if let Some(revoking) = revoking {
            connection.end_when(revoking);
        }
        Ok(connection)
    };
    match dialled.await {
        Ok(connection) => group.state.borrow_mut().connections.push(connection),
        Err(failure) => group.fail(&failure),
    }
    // Dropping the permit grants the new slots to the waiting opens.
    drop(permit);
}
