//! Keeps the kernel's fast-path entries consistent with the view in force.
//!
//! One lock orders the changes; tasks that carry bytes never wait for it. An entry is written under
//! the lock, and only if the view that it was decided by is still in force. If the lock is taken,
//! the entry is left to the next connection of the kind. A new view is put in force under the lock,
//! after every entry that the new view does not allow has been removed. So no new connection uses an
//! entry of an older view after a change is in force. An entry whose open connections may go on by the
//! new view is retired first and removed a moment later: a SYN that is about to leave by it goes on,
//! like an open connection.
//!
//! Of two processes on a node one is active. The standby has a view and uses it for the connections
//! that it carries, but does not change the kernel's entries. The role changes under the same lock,
//! so that a retired process writes no entry after its successor has become active.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use crate::bpf::{self, Kernel, StoredEntry};
use crate::discovery::OnDemandClient;
use crate::pods::{self, Connection, Outcome};
use mesh::NetnsCookie;
use mesh::ResourceKey;
use mesh::View;
use mesh::fastpath;
use mesh::fastpath::{FastPathConnection, FastPathEntry, FastPathKey, Fate, InboundEntry, Opener};
use mesh::route::address_key;

/// How long an entry stays retired: much longer than from `connect()` to its SYN.
const RETIREMENT: Duration = Duration::from_millis(150);

/// The view in force, and its fast-path entries.
#[derive(Debug)]
pub struct FastPath {
    view: ArcSwap<View>,
    /// `None` where rules capture the pods: the proxy carries every connection, and there are no
    /// entries.
    kernel: Option<Arc<Kernel>>,
    on_demand: Option<Arc<OnDemandClient>>,
    changing: Mutex<Role>,
    /// The sockets of connections that drain, and when each is terminated.
    draining: Mutex<HashMap<u64, Instant>>,
    /// The keys of retired entries, and when each is removed.
    retired: Mutex<HashMap<FastPathKey, Instant>>,
    /// Notifies of a new view.
    changed: watch::Sender<()>,
}

/// The process that owns the kernel's fast-path entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Active,
    /// Another process owns them.
    Standby,
}

impl FastPath {
    /// Starts on standby, with a view without pods: entries of an earlier process stay until the
    /// first change after [`Self::become_active`]. With a partial view of the mesh, `on_demand`
    /// knows which resources are not in the mesh.
    #[must_use]
    pub fn new(
        kernel: Option<Arc<Kernel>>,
        view: View,
        on_demand: Option<Arc<OnDemandClient>>,
    ) -> Self {
        Self {
            view: ArcSwap::from_pointee(view),
            kernel,
            on_demand,
            changing: Mutex::new(Role::Standby),
            draining: Mutex::default(),
            retired: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// From now on this process owns the kernel's entries.
    pub fn become_active(&self) {
        *self.lock() = Role::Active;
    }

    /// From now on another process owns the kernel's entries: after the return this process writes
    /// none.
    pub fn retire(&self) {
        *self.lock() = Role::Standby;
    }

    fn lock(&self) -> MutexGuard<'_, Role> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The view in force.
    pub fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// As [`Self::view`], for use across an await.
    #[must_use]
    pub fn view_owned(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// A receiver that is notified of every new view.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn put_in_force(&self, view: Arc<View>) {
        self.view.store(view);
        self.changed.send_replace(());
    }

    /// The lock, if it is free, this process is active, and `view` is in force.
    fn in_force(&self, view: &Arc<View>) -> Option<MutexGuard<'_, Role>> {
        let lock = match self.changing.try_lock() {
            Ok(lock) => lock,
            Err(TryLockError::Poisoned(lock)) => lock.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        (*lock == Role::Active && Arc::ptr_eq(&self.view.load(), view)).then_some(lock)
    }

    /// Writes the fast-path entry of an outbound key, as decided by `view`. Does nothing if another
    /// view is in force by now.
    pub fn insert_entry(&self, key: &FastPathKey, entry: &FastPathEntry, view: &Arc<View>) {
        if let Some(kernel) = &self.kernel
            && let Some(_lock) = self.in_force(view)
        {
            log_failure(kernel.insert_entry(key, entry));
        }
    }

    /// Writes the entry of an inbound plaintext connection, as authorized by `view`.
    pub fn insert_inbound_entry(&self, entry: &InboundEntry, view: &Arc<View>) {
        if let Some(kernel) = &self.kernel
            && let Some(_lock) = self.in_force(view)
        {
            log_failure(kernel.insert_inbound_entry(entry));
        }
    }

    /// Puts a view in force. After the return no new connection uses an entry that the view does not
    /// allow. Call
    /// [`Self::sweep`] afterwards, and again shortly later: connections that the proxy was just
    /// dialling under the old view become visible only then. On standby the entries are left to the
    /// active process.
    pub fn change(&self, view: View) {
        let view = Arc::new(view);
        let role = self.lock();
        let Some(kernel) = self.kernel.as_ref().filter(|_| *role == Role::Active) else {
            self.put_in_force(view);
            return;
        };
        self.prune(kernel, &view);
        self.put_in_force(view.clone());
        for pod in view.pods() {
            if let Err(error) = kernel.set_join_mode(pod.cookie, view.join_mode(pod.cookie)) {
                tracing::warn!(%error, pod = %pod.uid.0, "cannot change whether a sockmap joins the connections of the pod with the proxy");
            }
        }
    }

    /// Puts a view in force that knows more pods than the one before, and leaves the kernel's
    /// entries unchanged. Used while entries of an earlier process must stay, because pods of those
    /// entries have not been announced yet. [`Self::change`] later checks the entries.
    pub fn look_ahead(&self, view: View) {
        let _role = self.lock();
        self.put_in_force(Arc::new(view));
    }

    /// Removes the entries that rest on an expired negative answer of the control plane: the
    /// resource may be in the mesh by now. Open connections stay.
    pub fn expire(&self) {
        if let Some(kernel) = &self.kernel {
            self.remove_retired(kernel);
        }
        let role = self.lock();
        let Some(kernel) = self.kernel.as_ref().filter(|_| *role == Role::Active) else {
            return;
        };
        self.prune(kernel, &self.view.load());
    }

    /// The on-demand answer that the view does not contain: the destination is not in the mesh.
    fn absent(&self, key: &FastPathKey, view: &View) -> Option<ResourceKey> {
        let (on_demand, source) = (self.on_demand.as_ref()?, view.workload(key.pod)?);
        let key = address_key(source, key.destination.ip());
        on_demand.is_absent(&key).then_some(key)
    }

    /// Removes the entries that are retired for long enough. Returns when to call it again.
    fn remove_retired(&self, kernel: &Kernel) -> Option<Instant> {
        // Meanwhile no entry is written that this call would remove.
        let role = self.lock();
        if *role == Role::Standby {
            // The other process removes the retired entries of this one.
            return None;
        }
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = retired.extract_if(|_, end| *end <= now);
        for (key, _) in due {
            if let Err(error) = kernel.remove_retired_entry(&key) {
                tracing::warn!(%error, "cannot remove a fast-path entry that leads no new connection");
            }
        }
        retired.values().copied().min()
    }

    /// Removes every entry that the view does not allow. If the entries cannot be checked one by
    /// one, removes all.
    fn prune(&self, kernel: &Kernel, view: &View) {
        if let Err(error) = self.prune_each(kernel, view) {
            tracing::error!(%error, "cannot check the fast-path entries one by one: all of them are invalidated");
            // If this fails, too, there is no other remedy: the error is logged.
            if let Err(error) = kernel.invalidate_entries() {
                tracing::error!(%error, "cannot invalidate the fast-path entries");
            }
        }
    }

    /// A changed entry is replaced in place: a connection that uses the entry and has not sent its
    /// SYN would be stopped if the entry were missing.
    fn prune_each(&self, kernel: &Kernel, view: &View) -> Result<(), bpf::Error> {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        for StoredEntry {
            key,
            entry,
            is_retired,
        } in kernel.entries()?
        {
            let absent = self.absent(&key, view);
            match fastpath::entry_after_change(&key, absent.as_slice(), view) {
                Some(now) if now == entry && !is_retired => {}
                Some(now) => kernel.insert_entry(&key, &now)?,
                // A SYN that is about to leave by this entry goes on, like an open connection.
                None if !is_retired && fastpath::opened_may_go_on(&key, &entry, view) => {
                    kernel.retire_entry(&key, &entry)?;
                    retired.insert(key, Instant::now() + RETIREMENT);
                }
                None if is_retired
                    && retired.contains_key(&key)
                    && fastpath::opened_may_go_on(&key, &entry, view) => {}
                None => kernel.remove_entry(&key)?,
            }
        }
        drop(retired);
        for entry in kernel.inbound_entries()? {
            if !fastpath::inbound_allowed(&entry, view) {
                kernel.remove_inbound_entry(&entry)?;
            }
        }
        Ok(())
    }

    /// Terminates the connections of the fast path that are no longer allowed, and those whose
    /// destination has joined the mesh when they have drained for `drain_time`. Both ends see a
    /// reset. `pod` finds the pods that are served here. Returns when to call it again.
    pub fn sweep(
        &self,
        drain_time: Duration,
        pod: impl Fn(NetnsCookie) -> Option<Arc<pods::Pod>>,
    ) -> Option<Instant> {
        let kernel = self.kernel.as_ref()?;
        if *self.lock() == Role::Standby {
            return None;
        }
        let retired = self.remove_retired(kernel);
        let view = self.view.load_full();
        let connections = match kernel.fast_path_connections() {
            Ok(connections) => connections,
            Err(error) => {
                tracing::error!(%error, "cannot list the connections of the fast path: those that are no longer allowed stay open");
                return retired;
            }
        };
        let now = Instant::now();
        let mut drains = HashMap::new();
        let mut draining = self.draining.lock().unwrap_or_else(PoisonError::into_inner);
        let mut must_end = |connection: &FastPathConnection| match fastpath::fate(connection, &view)
        {
            Fate::Stays => false,
            Fate::Ends => true,
            Fate::Drains => {
                let since = draining.get(&connection.socket).copied();
                let until = since.unwrap_or(now + drain_time);
                drains.insert(connection.socket, until);
                until <= now
            }
        };
        let mut forbidden: HashMap<NetnsCookie, Vec<FastPathConnection>> = HashMap::new();
        for connection in connections {
            if must_end(&connection) {
                forbidden
                    .entry(connection.pod)
                    .or_default()
                    .push(connection);
            }
        }
        let drained = drains.values().copied().filter(|until| *until > now).min();
        let next = drained.into_iter().chain(retired).min();
        *draining = drains;
        drop(draining);
        for (cookie, connections) in forbidden {
            let Some(pod) = pod(cookie) else { continue };
            for gone in terminate(&pod, &connections) {
                if let Err(error) = kernel.remove_connection(gone) {
                    tracing::warn!(%error, "cannot remove the record of a closed connection");
                }
            }
        }
        next
    }
}

/// An entry that could not be written costs only speed.
fn log_failure(written: Result<(), bpf::Error>) {
    if let Err(error) = written {
        tracing::warn!(%error, "cannot write a fast-path entry: the proxy carries the next connection, too");
    }
}

/// Terminates connections of one pod; returns those that were gone before.
fn terminate<'a>(
    pod: &pods::Pod,
    connections: &'a [FastPathConnection],
) -> Vec<&'a FastPathConnection> {
    let sockets: Vec<Connection> = connections.iter().map(watched_end).collect();
    let destroyed = pod.netns.visit(|| pods::destroy(&sockets));
    let failed = |error: &dyn std::error::Error| {
        tracing::error!(%error, pod = %pod.uid.0, "cannot terminate connections that are no longer allowed");
        Vec::new()
    };
    let mut gone = Vec::new();
    let outcomes = match destroyed {
        Ok(Ok(destroyed)) => destroyed.outcomes,
        Ok(Err(error)) => return failed(&error),
        Err(error) => return failed(&error),
    };
    for (connection, outcome) in connections.iter().zip(outcomes) {
        match outcome {
            Outcome::Destroyed => {
                tracing::info!(pod = %pod.uid.0, client = %connection.client, server = %connection.server, "a connection was terminated: it is no longer allowed");
            }
            Outcome::Gone => gone.push(connection),
            Outcome::Failed(error) => {
                tracing::error!(%error, pod = %pod.uid.0, client = %connection.client, server = %connection.server, "cannot terminate a connection that is no longer allowed");
            }
        }
    }
    gone
}

/// The end of a connection whose socket the kernel programs track.
fn watched_end(connection: &FastPathConnection) -> Connection {
    let (client, server) = (connection.client, connection.server);
    let (local, remote) = match connection.opener {
        Opener::Outside => (server, client),
        Opener::Pod | Opener::Proxy => (client, server),
    };
    Connection {
        local,
        remote,
        cookie: NonZeroU64::new(connection.socket),
    }
}
