//! The connections of one pool key, and the queue of requests to open a tunnel on them.
//!
//! A request that finds no stream slot waits in this queue. One dial is in flight for every
//! `max_streams_per_connection` waiting requests. It runs in a task of its own, so a cancelled
//! request neither leaks a slot nor ends a dial that other requests wait for. A grant to a
//! cancelled request is returned when it is dropped ([`StreamSlot`], [`Permit`]).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::config::Config;
use super::connection::{self, Connection, Dialled, Owner, StreamSlot};
use super::error::DialFailure;
use super::pool::{Pool, PoolKey};

/// The connections of one key, and the requests that wait for a stream slot on them.
pub(crate) struct Group<E: 'static> {
    this: Weak<Self>,
    key: PoolKey,
    pool: Weak<Pool<E>>,
    config: Rc<Config>,
    state: RefCell<State<E>>,
}

struct State<E: 'static> {
    connections: Vec<Rc<Connection>>,
    /// Dials that are in flight, or granted to a request that has not started its dial yet.
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
    fn try_reserve(&self, except: Option<&Rc<Connection>>) -> Option<StreamSlot> {
        let is_allowed =
            |this: &&Rc<Connection>| !except.is_some_and(|except| Rc::ptr_eq(except, this));
        self.connections
            .iter()
            .filter(is_allowed)
            .find_map(Connection::try_reserve)
    }
}

/// A request to open a tunnel that has no slot yet.
struct Waiter<E: 'static> {
    grant: oneshot::Sender<Grant<E>>,
    dial: DialState,
    /// The connection on which the request failed before.
    except: Option<Rc<Connection>>,
}

/// Whether a waiting request has started its own dial. It may dial once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DialState {
    NotStarted,
    InFlight,
}

/// What a waiting request receives.
enum Grant<E: 'static> {
    Slot(StreamSlot),
    Dial(Permit<E>),
    Failed(DialFailure<E>),
}

/// The permission to dial. Dropping it counts the dial as ended.
struct Permit<E: 'static> {
    group: Rc<Group<E>>,
}

impl<E: 'static> Drop for Permit<E> {
    fn drop(&mut self) {
        self.group.state.borrow_mut().dialing -= 1;
        self.group.grant_waiting();
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

    /// The first open connection with a free slot, other than `except`.
    pub(crate) fn try_reserve(&self, except: Option<&Rc<Connection>>) -> Option<StreamSlot> {
        self.state.borrow().try_reserve(except)
    }

    /// Waits for a slot. Calls `dial` if the group grants this request a dial.
    pub(crate) async fn wait<IO, F>(
        self: &Rc<Self>,
        dial: &mut Option<impl FnOnce() -> F>,
        except: Option<Rc<Connection>>,
    ) -> Result<StreamSlot, DialFailure<E>>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
        F: Future<Output = Result<Dialled<IO>, E>> + 'static,
    {
        let mut granted = self.queue(DialState::NotStarted, except.clone());
        self.grant_waiting();
        loop {
            // Longer than any dial. It bounds the wait for a slot on a peer that allows too few
            // streams, and the effect of an accounting error.
            let wait_limit = 2 * self.config.connect_timeout;
            match tokio::time::timeout(wait_limit, granted).await {
                Ok(Ok(Grant::Slot(slot))) => return Ok(slot),
                Ok(Ok(Grant::Failed(failure))) => return Err(failure),
                Ok(Ok(Grant::Dial(permit))) => {
                    let Some(dial) = dial.take() else {
                        return Err(DialFailure::Abandoned);
                    };
                    // Queued in front before the dial starts, so that this request gets the first
                    // slot of the new connection.
                    granted = self.queue(DialState::InFlight, except.clone());
                    tokio::task::spawn_local(run_dial(permit, dial()));
                }
                Ok(Err(_dropped)) => return Err(DialFailure::Abandoned),
                Err(_elapsed) => return Err(DialFailure::DialTimeout { after: wait_limit }),
            }
        }
    }

    fn queue(
        &self,
        dial: DialState,
        except: Option<Rc<Connection>>,
    ) -> oneshot::Receiver<Grant<E>> {
        let (grant, granted) = oneshot::channel();
        let waiting = &mut self.state.borrow_mut().waiting;
        match dial {
            DialState::NotStarted => waiting.push_back(Waiter {
                grant,
                dial,
                except,
            }),
            DialState::InFlight => waiting.push_front(Waiter {
                grant,
                dial,
                except,
            }),
        }
        granted
    }

    /// Grants free slots and dials to the waiting requests until no further grant is possible.
    fn grant_waiting(&self) {
        while let Some((waiter, grant)) = self.next_grant() {
            // The send cannot fail: the waiter was checked, and no other task ran in between.
            drop(waiter.grant.send(grant));
        }
        self.remove_if_unused();
    }

    fn next_grant(&self) -> Option<(Waiter<E>, Grant<E>)> {
        let group = self.this.upgrade()?;
        let mut state = self.state.borrow_mut();
        // A cancelled request must not get a slot, and no dial is started for it.
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
        let except = state
            .waiting
            .front()
            .and_then(|waiter| waiter.except.clone());
        if let Some(slot) = state.try_reserve(except.as_ref()) {
            return Some((state.waiting.pop_front()?, Grant::Slot(slot)));
        }
        // A connection that waits for the peer's SETTINGS will have slots, as one that is being
        // dialled will.
        let pending = state
            .connections
            .iter()
            .filter(|connection| connection.awaits_settings());
        let pending = state.dialing + pending.count();
        let pending_slots = pending * self.config.max_streams_per_connection.max(1);
        if state.waiting.len() <= pending_slots {
            return None;
        }
        state.waiting.retain(|waiter| !waiter.grant.is_closed());
        if state.waiting.len() <= pending_slots {
            return None;
        }
        let index = state
            .waiting
            .iter()
            .position(|waiter| waiter.dial == DialState::NotStarted)?;
        state.dialing += 1;
        Some((state.waiting.remove(index)?, Grant::Dial(Permit { group })))
    }

    /// A dial failed: the requests that waited for it fail as well.
    fn fail(&self, failure: &DialFailure<E>) {
        let failed: Vec<_> = {
            let mut state = self.state.borrow_mut();
            // If no other dial is in flight, all waiting requests fail.
            let count = if state.dialing <= 1 {
                usize::MAX
            } else {
                self.config.max_streams_per_connection.max(1)
            };
            let count = count.min(state.waiting.len());
            state.waiting.drain(..count).collect()
        };
        for waiter in failed {
            drop(waiter.grant.send(Grant::Failed(failure.clone())));
        }
    }

    pub(crate) fn remove_if_unused(&self) {
        let state = self.state.borrow();
        let unused = state.connections.is_empty() && state.waiting.is_empty() && state.dialing == 0;
        drop(state);
        if let Some(pool) = self.pool.upgrade().filter(|_| unused) {
            pool.remove(self);
        }
    }
}

impl<E: 'static> Owner for Group<E> {
    fn slot_released(&self) {
        if !self.state.borrow().waiting.is_empty() {
            self.grant_waiting();
        }
    }

    fn connection_ended(&self, connection: &Connection) {
        self.state
            .borrow_mut()
            .connections
            .retain(|other| !std::ptr::eq(&raw const **other, connection));
        self.grant_waiting();
    }
}

/// Runs one dial: the caller's byte stream (TCP and TLS), then HTTP/2 on it.
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
        let handshake = connection::handshake(stream, config, owner);
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
            connection.abort_on_revocation(revoking);
        }
        Ok(connection)
    };
    match dialled.await {
        Ok(connection) => group.state.borrow_mut().connections.push(connection),
        Err(failure) => group.fail(&failure),
    }
    // Dropping the permit grants the new slots to the waiting requests.
    drop(permit);
}
