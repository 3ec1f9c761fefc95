//! The state of one worker thread: its tunnels, its open connections and its counters.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use super::authorized::AuthorizedConnections;
use super::connection_table::Shard;
use super::state::ProxyState;
use super::tunnel_client::TunnelClient;
use crate::dns;
use telemetry::Telemetry;
use tunnel::hbone::{self, TraceParent};

/// The state of one worker thread.
pub(super) struct WorkerState {
    /// Opens tunnels.
    pub(super) tunnels: TunnelClient,
    /// The limits and window sizes of tunnels.
    pub(super) hbone: Rc<hbone::Config>,
    /// Where the worker's connections are reported.
    pub(super) reports: Reports,
    /// The authorized open connections.
    pub(super) authorized: Rc<AuthorizedConnections>,
    /// The resolver answers that the worker's DNS servers share.
    pub(super) names: Rc<dns::SharedState>,
    random: RefCell<rand::rngs::SmallRng>,
    open: Cell<usize>,
    closed: Notify,
}

/// Where the connections of one worker are reported.
pub(super) struct Reports {
    pub(super) telemetry: Arc<Telemetry>,
    /// The worker's part of the connection table.
    pub(super) shard: Shard,
}

impl WorkerState {
    pub(super) fn new(proxy: &ProxyState) -> Rc<Self> {
        let hbone = Rc::new(proxy.config.hbone.clone());
        Rc::new(Self {
            tunnels: TunnelClient::new(proxy, &hbone),
            hbone,
            reports: Reports {
                telemetry: proxy.telemetry.clone(),
                shard: proxy.connection_table.shard(),
            },
            authorized: AuthorizedConnections::new(proxy.fast_path.view_owned()),
            names: Rc::default(),
            random: RefCell::new(rand::make_rng()),
            open: Cell::new(0),
            closed: Notify::new(),
        })
    }

    /// Counts a connection as open until the returned value is dropped. The worker does not end
    /// before.
    pub(super) fn hold_open(self: &Rc<Self>) -> OpenGuard {
        self.open.set(self.open.get() + 1);
        OpenGuard(self.clone())
    }

    /// Resolves when no connection is open.
    pub(super) async fn all_closed(&self) {
        while self.open.get() > 0 {
            self.closed.notified().await;
        }
    }

    /// A random number, for the choice of a backend.
    pub(super) fn random(&self) -> u64 {
        rand::Rng::next_u64(&mut *self.random.borrow_mut())
    }

    /// A new trace. Each connection has its own: the trace context of the application is inside its
    /// data.
    pub(super) fn new_trace(&self) -> TraceParent {
        let trace_id = u128::from(self.random()) << 64 | u128::from(self.random());
        // Zero is not a valid id (W3C Trace Context, section 3.2.2).
        TraceParent {
            trace_id: trace_id.max(1),
            parent_id: self.random().max(1),
            flags: 0,
        }
    }
}

/// Counts a connection as open until it is dropped.
pub(super) struct OpenGuard(Rc<WorkerState>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.closed.notify_one();
    }
}
