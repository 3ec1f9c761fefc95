//! The reports of connections that the proxy never touches. The kernel programs send an event when
//! such a connection opens or closes, and this module turns it into the same metrics and access log
//! as for a connection that the proxy carries.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt as _, HashSet};
use prometheus_client::metrics::counter::Counter;
use smallvec::{SmallVec, smallvec};

use crate::bpf::{Event, EventKind, Events, Kernel};
use crate::proxy::ProxyState;
use crate::proxy::connection_info::ConnectionInfo;
use crate::proxy::relay::Ended;
use crate::proxy::report::{Failure, close, count, series};
use mesh::NetnsCookie;
use mesh::View;
use mesh::Workload;
use mesh::fastpath::{FastPathConnection, Opener};
use mesh::inbound::backed_service;
use telemetry::{Reporter, ResponseFlag, Series};

/// The delay between a loss of events and the removal of connections that are gone: their own
/// events may still be queued.
const RECONCILE_DELAY: Duration = Duration::from_secs(5);

/// Why a connection of the fast path failed.
#[derive(Debug, thiserror::Error)]
enum FastPathError {
    #[error("the connection was reset")]
    Reset,
    #[error("the connection could not be opened: refused, unreachable or given up")]
    Failed,
    #[error("the kernel's event of its end was lost")]
    Lost,
}

impl Failure for FastPathError {
    fn flag(&self) -> ResponseFlag {
        match self {
            Self::Reset | Self::Lost => ResponseFlag::None,
            Self::Failed => ResponseFlag::Connect,
        }
    }
}

/// The properties that connections of one kind share. A connection between two pods of this node is
/// reported at both ends.
type Kind = SmallVec<[(ConnectionInfo, Arc<Series>); 2]>;

/// The key of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct KindKey {
    pod: NetnsCookie,
    opener: Opener,
    client: IpAddr,
    server: SocketAddr,
    dialled: SocketAddr,
}

/// The maximum number of cached kinds; when it is exceeded, the cache is cleared.
const KINDS: usize = 8192;

/// An open connection.
#[derive(Debug)]
struct Open {
    kind: Arc<Kind>,
    client: SocketAddr,
    /// When its first event was read.
    since: Instant,
}

/// The open connections of the fast path, by socket.
pub struct FastPathEvents {
    shared: Arc<ProxyState>,
    kernel: Arc<Kernel>,
    open: HashMap<u64, Open>,
    /// The cached kinds, derived from this view.
    kinds: HashMap<KindKey, Arc<Kind>>,
    view: Arc<View>,
    /// When the current events were read.
    now: Instant,
    lost: Counter,
    known_lost: u64,
}

impl std::fmt::Debug for FastPathEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FastPathEvents")
            .field("open", &self.open.len())
            .finish_non_exhaustive()
    }
}

impl FastPathEvents {
    /// Starts empty; [`Self::follow`] first adopts the connections of an earlier process.
    #[must_use]
    pub fn new(shared: Arc<ProxyState>, kernel: Arc<Kernel>) -> Self {
        let lost = Counter::default();
        shared.telemetry.register(
            "ztunnel_direct_events_lost",
            "Events of fast-path connections that were lost because the proxy read them too slowly",
            lost.clone(),
        );
        Self {
            open: HashMap::new(),
            kinds: HashMap::new(),
            view: shared.fast_path.view_owned(),
            now: Instant::now(),
            lost,
            known_lost: kernel.lost_events(),
            shared,
            kernel,
        }
    }

    /// Processes events until reading fails.
    ///
    /// # Errors
    /// When the events cannot be read any more.
    pub async fn follow(mut self, mut events: Events) -> std::io::Result<()> {
        // The open connections first, then the events since an earlier process ended: the end of an
        // open connection may be among the events.
        self.refresh_view();
        self.adopt();
        events.drain(|event| self.record(&event));
        // After a loss of events: when to look for connections whose close event was lost.
        let mut reconcile_at: Option<Instant> = None;
        loop {
            let delay = reconcile_at.map_or(RECONCILE_DELAY, |until| {
                until.duration_since(Instant::now())
            });
            tokio::select! {
                gathered = events.wait_for_batch() => {
                    gathered?;
                    self.refresh_view();
                    events.drain(|event| self.record(&event));
                }
                () = tokio::time::sleep(delay), if reconcile_at.is_some() => {
                    reconcile_at = None;
                    self.reconcile();
                }
            }
            if self.count_losses() {
                reconcile_at = Some(Instant::now() + RECONCILE_DELAY);
            }
        }
    }

    /// Updates the time and the view for the current events.
    fn refresh_view(&mut self) {
        self.now = Instant::now();
        let view = self.shared.fast_path.view();
        if !Arc::ptr_eq(&view, &self.view) {
            self.view = view.clone();
            self.kinds.clear();
        }
    }

    fn count_losses(&mut self) -> bool {
        let lost = self.kernel.lost_events();
        let more = lost.saturating_sub(self.known_lost);
        if more > 0 {
            self.lost.inc_by(more);
            self.known_lost = lost;
            tracing::warn!(
                more,
                "events of fast-path connections were lost: the proxy read them too slowly"
            );
        }
        more > 0
    }

    /// Adopts connections that an earlier process has counted as opened.
    fn adopt(&mut self) {
        let Ok(flows) = self.kernel.fast_path_connections() else {
            return;
        };
        for flow in flows {
            if flow.opener != Opener::Proxy && !self.open.contains_key(&flow.socket) {
                let kind = self.kind(&flow);
                self.open.insert(flow.socket, self.open_now(kind, &flow));
            }
        }
    }

    fn record(&mut self, event: &Event) {
        let flow = &event.connection;
        if event.kind == EventKind::Opened {
            // An adopted connection may have an open event, too.
            let kind = self.begin(flow);
            self.open.insert(flow.socket, self.open_now(kind, flow));
            return;
        }
        let kind = match self.open.remove(&flow.socket) {
            Some(open) => open.kind,
            // The connection was never established, or its open event was lost.
            None => self.begin(flow),
        };
        let ended = Ended {
            request: event.request_bytes,
            response: event.response_bytes,
            broken: None,
            after: Some(event.elapsed),
        };
        let failure = match event.kind {
            EventKind::Opened | EventKind::Closed => None,
            EventKind::Reset => Some(FastPathError::Reset),
            EventKind::Failed => Some(FastPathError::Failed),
        };
        // The connection may have met redirection rules inside the pod.
        if let (EventKind::Failed, Some(server)) = (event.kind, flow.server_pod) {
            self.shared.recheck.add(server);
        }
        end(&kind, flow.client, &ended, failure.as_ref());
    }

    fn open_now(&self, kind: Arc<Kind>, flow: &FastPathConnection) -> Open {
        Open {
            kind,
            client: flow.client,
            since: self.now,
        }
    }

    fn begin(&mut self, flow: &FastPathConnection) -> Arc<Kind> {
        let kind = self.kind(flow);
        for (_, series) in kind.iter() {
            series.opened.inc();
        }
        kind
    }

    fn kind(&mut self, flow: &FastPathConnection) -> Arc<Kind> {
        let key = KindKey {
            pod: flow.pod,
            opener: flow.opener,
            client: flow.client.ip(),
            server: flow.server,
            dialled: flow.dialled,
        };
        if let Some(kind) = self.kinds.get(&key) {
            return kind.clone();
        }
        if self.kinds.len() >= KINDS {
            self.kinds.clear();
        }
        let shared = &self.shared;
        let info = info(flow, &self.view, &shared.config.network);
        let counted = info.into_iter().map(|info| {
            let series = series(&shared.telemetry, &info);
            (info, series)
        });
        let kind = Arc::new(counted.collect::<Kind>());
        self.kinds.insert(key, kind.clone());
        kind
    }

    /// Ends the connections that are gone without a close event.
    fn reconcile(&mut self) {
        let Ok(flows) = self.kernel.fast_path_connections() else {
            return;
        };
        let alive: HashSet<u64> = flows.iter().map(|flow| flow.socket).collect();
        // The close event of a newer connection may still be queued.
        let gone = |socket: &u64, open: &mut Open| {
            !alive.contains(socket) && open.since.elapsed() > RECONCILE_DELAY / 2
        };
        for (_, open) in self.open.extract_if(gone) {
            let ended = Ended {
                after: Some(open.since.elapsed()),
                ..Ended::default()
            };
            end(&open.kind, open.client, &ended, Some(&FastPathError::Lost));
        }
    }
}

/// Ends a connection of a kind.
fn end(kind: &Kind, client: SocketAddr, ended: &Ended, failure: Option<&FastPathError>) {
    let failure = failure.map(|error| error as &dyn Failure);
    for (info, series) in kind {
        count(series, ended);
        close(info, client, series, ended, failure);
    }
}

/// What the mesh knows about a connection.
fn info(flow: &FastPathConnection, view: &View, network: &str) -> SmallVec<[ConnectionInfo; 2]> {
    let at = |ip| view.mesh.workload_by_address(network, ip).cloned();
    let own = view.workload(flow.pod).cloned();
    let reached = |workload: &Option<Arc<Workload>>, said: Option<&str>| {
        backed_service(workload.as_deref()?, &view.mesh, said, flow.server.port())
    };
    let mut info = ConnectionInfo {
        reporter: Reporter::Source,
        began: Instant::now(),
        client: flow.client,
        dialled: flow.dialled,
        source: None,
        source_identity: None,
        destination: flow.server,
        hbone: None,
        workload: None,
        destination_identity: None,
        service: None,
    };
    if flow.opener == Opener::Outside {
        info.reporter = Reporter::Destination;
        info.source = at(flow.client.ip());
        info.workload = own.or_else(|| at(flow.server.ip()));
        info.service = reached(&info.workload, None);
        return smallvec![info];
    }
    info.source = own.or_else(|| at(flow.client.ip()));
    let namespace = info.source.as_ref().map(|source| &*source.namespace);
    let service = namespace.and_then(|namespace| {
        let dialled = flow.dialled.ip();
        view.mesh.entry_by_vip(network, dialled, namespace)
    });
    info.service = service.map(|entry| entry.service.clone());
    let Some(server) = flow.server_pod else {
        info.workload = at(flow.server.ip());
        return smallvec![info];
    };
    info.workload = view
        .workload(server)
        .cloned()
        .or_else(|| at(flow.server.ip()));
    let identity = |workload: &Option<Arc<Workload>>| {
        workload.as_ref().map(|workload| workload.identity.clone())
    };
    info.source_identity = identity(&info.source);
    info.destination_identity = identity(&info.workload);
    let said = info.service.as_ref().map(|service| &*service.hostname);
    let arrival = ConnectionInfo {
        reporter: Reporter::Destination,
        service: reached(&info.workload, said),
        ..info.clone()
    };
    smallvec![info, arrival]
}
