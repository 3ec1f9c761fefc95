//! The state of one pod on one worker, which every connection of the pod uses.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::HeaderValue;
use tokio::sync::watch;

use super::connection::Connection;
use super::connections::Connections;
use super::refusal::{Places, Refusals};
use super::relay::CopyMode;
use super::state::ProxyState;
use super::tunnel_client;
use super::wait::{Awaited, Interrupted, WaitDeadline, WaitError};
use super::worker_state::WorkerState;
use crate::discovery::RateLimiter;
use crate::pods::Pod;
use mesh::{NetnsCookie, Snapshot, Uid, View, Workload};

/// The state of one pod on one worker.
pub(super) struct PodContext {
    /// The state that all workers share.
    pub(super) proxy: Arc<ProxyState>,
    /// The state of the worker.
    pub(super) worker: Rc<WorkerState>,
    /// The pod.
    pub(super) pod: Arc<Pod>,
    /// Becomes true when the pod leaves or the process drains.
    pub(super) drain: watch::Receiver<bool>,
    /// Becomes true when another process accepts the pod's connections.
    pub(super) resigned: watch::Receiver<bool>,
    /// Limits on-demand discovery for the pod's outbound connections.
    pub(super) outbound_limit: RateLimiter,
    /// Limits on-demand discovery for the pod's inbound connections.
    pub(super) inbound_limit: RateLimiter,
    /// Whether the pod acts with its announced workload where the mesh does not contain it.
    announcement_in_use: Cell<bool>,
    /// The connections of the pod that are being refused on this worker.
    pub(super) refusals: Refusals,
    /// The connections of the pod that wait for another attempt on this worker.
    retries: Places,
    /// The pod's open connections on this worker.
    connections: Rc<Connections>,
    /// The pod's baggage header, cached until its workload object changes.
    baggage: RefCell<Option<(Arc<Workload>, Option<HeaderValue>)>>,
}

impl PodContext {
    pub(super) fn new(
        proxy: Arc<ProxyState>,
        worker: Rc<WorkerState>,
        pod: Arc<Pod>,
        drain: watch::Receiver<bool>,
        resigned: watch::Receiver<bool>,
    ) -> Rc<Self> {
        let workers = proxy.config.workers;
        Rc::new(Self {
            proxy,
            worker,
            pod,
            drain,
            resigned,
            outbound_limit: RateLimiter::new(workers),
            inbound_limit: RateLimiter::new(workers),
            announcement_in_use: Cell::new(false),
            refusals: Refusals::default(),
            retries: Places::default(),
            connections: Rc::default(),
            baggage: RefCell::default(),
        })
    }

    /// The pod's network namespace.
    pub(super) fn cookie(&self) -> NetnsCookie {
        NetnsCookie(self.pod.netns.cookie())
    }

    /// A new connection of the pod.
    pub(super) fn connection(
        &self,
        client: SocketAddr,
        destination: SocketAddr,
        accepted: Instant,
    ) -> Connection {
        let trace = self.worker.new_trace();
        Connection::new(self.cookie(), client, destination, accepted, trace)
    }

    /// Runs one connection of this pod as a task. The worker does not end before the task.
    pub(super) fn spawn(&self, connection: impl Future<Output = ()> + 'static) {
        self.connections.spawn(self.worker.hold_open(), connection);
    }

    /// Runs a task that serves the pod and is not a connection. The worker does not end before the
    /// task.
    pub(super) fn serve(&self, serving: impl Future<Output = ()> + 'static) {
        let open = self.worker.hold_open();
        tokio::task::spawn_local(async move {
            serving.await;
            drop(open);
        });
    }

    /// Resets the open connections when `deadline` has passed.
    pub(super) async fn reset_after(self: Rc<Self>, deadline: Duration) {
        tokio::time::sleep(deadline).await;
        let open = self.connections.count();
        if open > 0 {
            tracing::info!(pod = %self.pod.uid.0, open, "the pod has left the node: its open connections are reset");
            self.connections.reset();
        }
    }

    /// Records that rules inside the pod redirect inbound connections. Such rules can appear after
    /// the enrollment.
    pub(super) fn set_redirected(&self) {
        if !self.pod.redirected.swap(true, Ordering::Relaxed) {
            tracing::info!(pod = %self.pod.uid.0, "rules inside the pod redirect inbound connections: the fast path does not lead to the pod");
            self.proxy.recheck.add(self.cookie());
        }
    }

    /// The baggage header for tunnels of this pod.
    pub(super) fn baggage(&self, workload: &Arc<Workload>) -> Option<HeaderValue> {
        let mut cached = self.baggage.borrow_mut();
        match &*cached {
            Some((of, header)) if Arc::ptr_eq(of, workload) => header.clone(),
            _ => {
                let header = tunnel_client::baggage(workload);
                *cached = Some((workload.clone(), header.clone()));
                header
            }
        }
    }

    /// How relays of this pod copy bytes. `splice(2)` is excluded where the kernel may join the
    /// pod's connections with the proxy's.
    pub(super) fn copy_mode(&self) -> CopyMode {
        let kernel = self.proxy.kernel.as_ref();
        if kernel.is_some_and(|kernel| kernel.may_join()) {
            CopyMode::Copy
        } else {
            CopyMode::Adaptive
        }
    }

    /// The workload that the pod acts with as a client: that of the mesh, or the announced one after
    /// a wait for the former has expired.
    pub(super) fn client(&self, mesh: &Snapshot) -> Option<Arc<Workload>> {
        if let Some(workload) = self.pod.workload(mesh) {
            // If the mesh loses the workload, its connections wait again.
            self.announcement_in_use.set(false);
            return Some(workload.clone());
        }
        let announced = self.pod.announced.as_ref();
        let in_use = self.announcement_in_use.get() && self.is_mesh_known();
        announced.filter(|_| in_use).cloned()
    }

    /// Whether the control plane has sent the whole mesh: only then is a view with pods in force.
    /// Before that, every destination would look as if it were outside the mesh.
    fn is_mesh_known(&self) -> bool {
        self.proxy.fast_path.view().pod(self.cookie()).is_some()
    }

    /// Lets the pod act with its announced workload until the mesh contains the workload. Returns
    /// false if there is no announced workload, or the mesh is not known at all.
    ///
    /// The announcement says who the pod is, which is all that its own connections and DNS queries
    /// need. What may connect to the pod is in the policies of its workload in the mesh, so inbound
    /// connections always need that one.
    pub(super) fn use_announcement(&self) -> bool {
        let announced = self.pod.announced.as_ref();
        let Some(announced) = announced.filter(|_| self.is_mesh_known()) else {
            return false;
        };
        if !self.announcement_in_use.replace(true) {
            tracing::warn!(
                pod = %self.pod.uid.0, identity = %announced.identity,
                "the control plane has not sent the pod's workload in time: the pod's own connections \
                 and DNS queries go on with the identity that the node agent has announced"
            );
        }
        true
    }

    /// Waits until the pod can act as a client: until the mesh contains its workload, or for a pod
    /// that the node agent has announced until the wait expires. `client_gone` resolves when the
    /// client closes the connection.
    ///
    /// # Errors
    /// As [`WorkloadWaits::wait`](super::wait::WorkloadWaits::wait).
    pub(super) async fn wait_for_client(
        &self,
        deadline: WaitDeadline,
        client_gone: impl Future<Output = ()>,
    ) -> Result<(), WaitError> {
        match self.wait_for_own_workload(deadline, client_gone).await {
            Err(WaitError::Expired { .. }) if self.use_announcement() => Ok(()),
            waited => waited,
        }
    }

    /// Waits until the mesh contains the workload of this pod. `client_gone` resolves when the
    /// client closes the connection.
    ///
    /// # Errors
    /// As [`WorkloadWaits::wait`](super::wait::WorkloadWaits::wait).
    pub(super) async fn wait_for_own_workload(
        &self,
        deadline: WaitDeadline,
        client_gone: impl Future<Output = ()>,
    ) -> Result<(), WaitError> {
        let is_known = |view: &View| self.pod.workload(&view.mesh).is_some();
        let uid = &self.pod.uid;
        self.wait(uid, deadline, is_known, client_gone).await
    }

    /// Waits until another view than `view` is in force, or for `limit`. Returns false at once if too
    /// many connections of the pod wait, and when the client or the pod has gone.
    pub(super) async fn wait_for_change(
        &self,
        view: &Arc<View>,
        limit: Duration,
        client_gone: impl Future<Output = ()>,
    ) -> bool {
        // Subscribed before the check, so that no change is missed.
        let mut changes = self.proxy.fast_path.changes();
        if !Arc::ptr_eq(&self.proxy.fast_path.view_owned(), view) {
            return true;
        }
        let Some(_place) = self.retries.enter() else {
            return false;
        };
        let mut drain = self.drain.clone();
        tokio::select! {
            _changed = changes.changed() => true,
            () = tokio::time::sleep(limit) => true,
            () = client_gone => false,
            _left = drain.wait_for(|draining| *draining) => false,
        }
    }

    /// Waits until the mesh contains the workload of another pod of this node, or that pod has left
    /// the node.
    ///
    /// # Errors
    /// As [`WorkloadWaits::wait`](super::wait::WorkloadWaits::wait).
    pub(super) async fn wait_for_local_workload(
        &self,
        uid: &Uid,
        deadline: WaitDeadline,
        client_gone: impl Future<Output = ()>,
    ) -> Result<(), WaitError> {
        let is_known = |view: &View| !view.is_expected(&uid.0);
        self.wait(uid, deadline, is_known, client_gone).await
    }

    async fn wait(
        &self,
        uid: &Uid,
        deadline: WaitDeadline,
        is_known: impl Fn(&View) -> bool,
        client_gone: impl Future<Output = ()>,
    ) -> Result<(), WaitError> {
        let awaited = Awaited {
            pod: self.cookie(),
            uid: &uid.0,
            deadline,
        };
        let mut drain = self.drain.clone();
        let interrupted = async {
            tokio::select! {
                () = client_gone => Interrupted::ClientGone,
                _left = drain.wait_for(|draining| *draining) => Interrupted::Leaving,
            }
        };
        self.proxy.waits.wait(awaited, is_known, interrupted).await
    }
}
