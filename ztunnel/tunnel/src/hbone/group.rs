//! The connections of one key: who gets a place on them, and who must dial another.
//!
//! An open that finds no place queues here. One dial is in flight for every
//! `max_streams_per_connection` that wait, and it runs in a task of its own: an open that is
//! cancelled neither leaks a place nor ends a dial that others wait for. Whatever is granted to
//! an open that is gone comes back by being dropped ([`Slot`], [`Permit`]).

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

/// The connections of one key and who waits for them.
pub(crate) struct Group<E: 'static> {
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

    /// The first connection with a free place, those that are over set aside.
    pub(crate) fn take(&self, but: Option<&Rc<Connection>>) -> Option<Slot> {
        self.state.borrow().take(but)
    }

    /// Waits for a place, dialling when told to.
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

/// One dial: the caller's byte stream, then HTTP/2 on it.
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
    // Giving the permit back hands the new places out.
    drop(permit);
}
