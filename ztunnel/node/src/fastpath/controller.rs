//! Keeps the kernel's verdicts in step with what this node knows.
//!
//! There is one lock, and nobody who carries bytes waits for it. A verdict is written under it, and
//! only if the view it was judged by is still the one in force; who does not get the lock leaves the
//! verdict to the next connection of the kind. A new view is put in force under it, after every
//! verdict that does not hold by the new view has been removed. So there is no moment in which a
//! change counts and a verdict from before it lets anything through.
//!
//! Of two processes on a node one is in charge. The other has a view, and judges by it what it
//! carries, but leaves the kernel's verdicts alone; which of the two this process is changes under
//! the same lock, so that nothing of one that has handed over comes after what its heir has judged.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use crate::bpf::{self, Kernel};
use crate::discovery::OnDemandClient;
use crate::pods::{self, Connection, Outcome};
use mesh::DemandKey;
use mesh::NetnsCookie;
use mesh::View;
use mesh::fastpath;
use mesh::fastpath::{FastPathConnection, FastPathEntry, FastPathKey, InboundEntry, Opener};
use mesh::route::address_key;

/// The view in force, and the verdicts that follow from it.
#[derive(Debug)]
pub struct FastPath {
    view: ArcSwap<View>,
    /// None where rules capture the pods: nothing goes past the proxy, and nothing is remembered.
    kernel: Option<Arc<Kernel>>,
    on_demand: Option<Arc<OnDemandClient>>,
    changing: Mutex<Role>,
    /// Tells that another view is in force.
    changed: watch::Sender<()>,
}

/// Whose the kernel's verdicts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Active,
    /// Another process's.
    Standby,
}

impl FastPath {
    /// Begins with a view that knows no pods, and not in charge: verdicts of an earlier process hold
    /// until the first change after [`Self::become_active`]. `on_demand` tells what is not in the mesh,
    /// where the mesh is known in part only.
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
            changed: watch::Sender::new(()),
        }
    }

    /// The kernel's verdicts are this process's from now on.
    pub fn become_active(&self) {
        *self.lock() = Role::Active;
    }

    /// The kernel's verdicts are another process's from now on: when this returns, nothing of this
    /// one is written any more.
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

    /// As [`Self::view`], to be held across an await.
    #[must_use]
    pub fn view_owned(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Is marked as changed whenever another view is in force.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn put_in_force(&self, view: Arc<View>) {
        self.view.store(view);
        self.changed.send_replace(());
    }

    /// The lock, if nobody has it, this process is in charge, and the view is the one in force.
    fn in_force(&self, view: &Arc<View>) -> Option<MutexGuard<'_, Role>> {
        let lock = match self.changing.try_lock() {
            Ok(lock) => lock,
            Err(TryLockError::Poisoned(lock)) => lock.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        (*lock == Role::Active && Arc::ptr_eq(&self.view.load(), view)).then_some(lock)
    }

    /// Lets a call go by itself from now on, as it was judged by `view`. Does nothing where
    /// another view is in force by now.
    pub fn insert_entry(&self, call: &FastPathKey, verdict: &FastPathEntry, view: &Arc<View>) {
        if let Some(kernel) = &self.kernel
            && let Some(_lock) = self.in_force(view)
        {
            told(kernel.insert_entry(call, verdict));
        }
    }

    /// Lets plaintext go past the proxy from now on, as it was judged by `view`.
    pub fn insert_inbound_entry(&self, arrival: &InboundEntry, view: &Arc<View>) {
        if let Some(kernel) = &self.kernel
            && let Some(_lock) = self.in_force(view)
        {
            told(kernel.insert_inbound_entry(arrival));
        }
    }

    /// Puts a view in force. When this returns, no verdict that does not hold by it is left.
    /// [`Self::sweep`] afterwards, and once more a moment later: what the proxy was just dialling, as
    /// it was judged before, is written down only then. Where another process is in charge, the
    /// verdicts are its to look through.
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
            if let Err(error) = kernel.set_ends(pod.cookie, view.ends(pod.cookie)) {
                tracing::warn!(%error, pod = %pod.uid.0, "its connections with the proxy stay as they are");
            }
        }
    }

    /// Puts a view in force that knows more of the pods than the one before, and leaves the kernel's
    /// verdicts as they are: for as long as an earlier process's are to hold, because pods that they
    /// are about are still to be named. [`Self::change`] makes up for it.
    pub fn look_ahead(&self, view: View) {
        let _role = self.lock();
        self.put_in_force(Arc::new(view));
    }

    /// Removes the verdicts that rest on an answer of the control plane's that no longer holds: what
    /// was not in the mesh may be in it by now, and nobody has told. What is open stays.
    pub fn expire(&self) {
        let role = self.lock();
        let Some(kernel) = self.kernel.as_ref().filter(|_| *role == Role::Active) else {
            return;
        };
        self.prune(kernel, &self.view.load());
    }

    /// What is known about a call beside the view.
    fn absent(&self, call: &FastPathKey, view: &View) -> Option<DemandKey> {
        let (on_demand, source) = (self.on_demand.as_ref()?, view.workload(call.pod)?);
        let key = address_key(source, call.destination.ip());
        on_demand.is_absent(&key).then_some(key)
    }

    /// Leaves no verdict that does not hold by the view; where they cannot be looked through, none.
    fn prune(&self, kernel: &Kernel, view: &View) {
        if let Err(error) = self.prune_each(kernel, view) {
            tracing::error!(%error, "verdicts cannot be checked one by one: all are void now");
            // Should not even this work, nothing about the maps does, and it is said above.
            if let Err(error) = kernel.invalidate_entries() {
                tracing::error!(%error, "verdicts cannot be made void");
            }
        }
    }

    /// A verdict that has a successor is replaced in place: a call that has been let go, and whose SYN
    /// has not left, is stopped if it finds none.
    fn prune_each(&self, kernel: &Kernel, view: &View) -> Result<(), bpf::Error> {
        for (call, written) in kernel.entries()? {
            match fastpath::outbound_entry(&call, self.absent(&call, view).as_slice(), view) {
                Some(now) if now == written => {}
                Some(now) => kernel.insert_entry(&call, &now)?,
                None => kernel.remove_entry(&call)?,
            }
        }
        for arrival in kernel.inbound_entries()? {
            if !fastpath::inbound_allowed(&arrival, view) {
                kernel.remove_inbound_entry(&arrival)?;
            }
        }
        Ok(())
    }

    /// Ends the connections of the direct lane that may no longer be open. Both ends see a reset.
    /// `pod` finds the pods that are served here.
    pub fn sweep(&self, pod: impl Fn(NetnsCookie) -> Option<Arc<pods::Pod>>) {
        let Some(kernel) = &self.kernel else {
            return;
        };
        if *self.lock() == Role::Standby {
            return;
        }
        let view = self.view.load_full();
        let fast_path_connections = match kernel.fast_path_connections() {
            Ok(fast_path_connections) => fast_path_connections,
            Err(error) => {
                tracing::error!(%error, "the connections of the direct lane cannot be listed");
                return;
            }
        };
        let mut forbidden: HashMap<NetnsCookie, Vec<FastPathConnection>> = HashMap::new();
        for flow in fast_path_connections {
            if !fastpath::may_stay(&flow, &view) {
                forbidden.entry(flow.pod).or_default().push(flow);
            }
        }
        for (cookie, fast_path_connections) in forbidden {
            if let Some(pod) = pod(cookie) {
                for flow in end(&pod, &fast_path_connections) {
                    if let Err(error) = kernel.remove_connection(flow) {
                        tracing::warn!(%error, "a connection that is gone stays written down");
                    }
                }
            }
        }
    }
}

/// A verdict that cannot be written costs speed and nothing else.
fn told(written: Result<(), bpf::Error>) {
    if let Err(error) = written {
        tracing::warn!(%error, "a verdict was not written; the proxy goes on judging");
    }
}

/// Ends connections of one pod; returns those that were gone before.
fn end<'a>(
    pod: &pods::Pod,
    fast_path_connections: &'a [FastPathConnection],
) -> Vec<&'a FastPathConnection> {
    let connections: Vec<Connection> = fast_path_connections.iter().map(watched_end).collect();
    let ended = pod.netns.visit(|| pods::destroy(&connections));
    let failed = |error: &dyn std::error::Error| {
        tracing::error!(%error, pod = %pod.uid.0, "connections that are no longer allowed go on");
        Vec::new()
    };
    let mut gone = Vec::new();
    let outcomes = match ended {
        Ok(Ok(ended)) => ended.outcomes,
        Ok(Err(error)) => return failed(&error),
        Err(error) => return failed(&error),
    };
    for (flow, outcome) in fast_path_connections.iter().zip(outcomes) {
        match outcome {
            Outcome::Destroyed => {
                tracing::info!(pod = %pod.uid.0, client = %flow.client, server = %flow.server, "connection ended: it is no longer allowed");
            }
            Outcome::Gone => gone.push(flow),
            Outcome::Failed(error) => {
                tracing::error!(%error, pod = %pod.uid.0, client = %flow.client, server = %flow.server, "a connection that is no longer allowed goes on");
            }
        }
    }
    gone
}

/// The end of a connection whose socket the kernel programs watch.
fn watched_end(flow: &FastPathConnection) -> Connection {
    let (local, remote) = match flow.opener {
        Opener::Outside => (flow.server, flow.client),
        Opener::Pod | Opener::Proxy => (flow.client, flow.server),
    };
    Connection {
        local,
        remote,
        cookie: NonZeroU64::new(flow.socket),
    }
}
