//! The records of connections that the proxy never touches: the kernel programs tell when one is
//! opened and closed, and here it becomes the same metrics and the same line in the access log as
//! a connection that was carried.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use smallvec::{SmallVec, smallvec};

use super::super::Shared;
use super::super::relay::Ended;
use super::super::report::{Facts, Failure, Record};
use super::super::view::View;
use crate::kernel::{Event, Events, Flow, Happening, Opener};
use crate::mesh::Workload;
use crate::telemetry::{Reporter, ResponseFlag, Telemetry};

/// How long after a loss of events the records are given up whose connections are gone: their own
/// events may still be under way.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a connection of the direct lane did not end well.
#[derive(Debug, thiserror::Error)]
enum DirectError {
    #[error("the connection was reset")]
    Reset,
    #[error("the connection could not be opened: refused, unreachable or given up")]
    Failed,
    #[error("the kernel's event of its end was lost")]
    Lost,
}

impl Failure for DirectError {
    fn flag(&self) -> ResponseFlag {
        match self {
            Self::Reset | Self::Lost => ResponseFlag::None,
            Self::Failed => ResponseFlag::Connect,
        }
    }
}

/// One or two records: a connection between two pods of this node is reported for both ends.
type Records = SmallVec<[Record; 2]>;

/// The open records of the direct lane, by socket.
pub struct Accounts {
    shared: Arc<Shared>,
    open: HashMap<u64, (Instant, Records)>,
    lost: Counter,
    known_lost: u64,
}

impl std::fmt::Debug for Accounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accounts")
            .field("open", &self.open.len())
            .finish_non_exhaustive()
    }
}

impl Accounts {
    /// Takes over the records of the connections that are open.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        let lost = Counter::default();
        shared.telemetry.register(
            "ztunnel_direct_events_lost",
            "Events of connections on the direct lane that were lost because the proxy was too slow",
            lost.clone(),
        );
        let known_lost = shared.kernel.lost_events();
        Self {
            shared,
            open: HashMap::new(),
            lost,
            known_lost,
        }
    }

    /// Keeps the records for ever.
    ///
    /// # Errors
    /// When the events cannot be read any more.
    pub async fn follow(mut self, mut events: Events) -> std::io::Result<()> {
        // What happened since an earlier process ended, and what was open when it did.
        events.drain(|event| self.record(&event));
        self.adopt();
        // After a loss, when to look for records whose end was lost.
        let mut doubt: Option<Instant> = None;
        loop {
            let patience = doubt.map_or(PATIENCE, |until| until.duration_since(Instant::now()));
            tokio::select! {
                gathered = events.gather(|event| self.record(&event)) => gathered?,
                () = tokio::time::sleep(patience), if doubt.is_some() => {
                    doubt = None;
                    self.reconcile();
                }
            }
            if self.count_losses() {
                doubt = Some(Instant::now() + PATIENCE);
            }
        }
    }

    fn count_losses(&mut self) -> bool {
        let lost = self.shared.kernel.lost_events();
        let more = lost.saturating_sub(self.known_lost);
        if more > 0 {
            self.lost.inc_by(more);
            self.known_lost = lost;
            tracing::warn!(more, "events of the direct lane were lost");
        }
        more > 0
    }

    fn adopt(&mut self) {
        let Ok(flows) = self.shared.kernel.flows() else {
            return;
        };
        for flow in flows {
            if flow.opener != Opener::Proxy && !self.open.contains_key(&flow.socket) {
                let records = self.records(&flow, Record::adopt);
                self.open.insert(flow.socket, (Instant::now(), records));
            }
        }
    }

    fn record(&mut self, event: &Event) {
        let flow = &event.flow;
        if event.happening == Happening::Opened {
            let records = self.records(flow, Record::open);
            self.open.insert(flow.socket, (Instant::now(), records));
            return;
        }
        let known = self.open.remove(&flow.socket);
        // One that was never established, or whose beginning was lost.
        let (_, records) =
            known.unwrap_or_else(|| (Instant::now(), self.records(flow, Record::open)));
        let ended = Ended {
            request: event.request,
            response: event.response,
            broken: None,
            after: Some(event.after),
        };
        let failure = match event.happening {
            Happening::Opened | Happening::Closed => None,
            Happening::Reset => Some(DirectError::Reset),
            Happening::Failed => Some(DirectError::Failed),
        };
        for record in records {
            record.end_elsewhere(&ended, failure.as_ref().map(|error| error as &dyn Failure));
        }
    }

    fn records(&self, flow: &Flow, open: impl Fn(&Telemetry, Facts) -> Record) -> Records {
        let shared = &self.shared;
        let view = shared.keeper.view();
        facts(flow, &view, &shared.config.network)
            .into_iter()
            .map(|facts| open(&shared.telemetry, facts))
            .collect()
    }

    /// Gives up the records whose connections are gone without a word.
    fn reconcile(&mut self) {
        let Ok(flows) = self.shared.kernel.flows() else {
            return;
        };
        let alive: HashSet<u64> = flows.iter().map(|flow| flow.socket).collect();
        let gone =
            |socket: &u64, since: &Instant| !alive.contains(socket) && since.elapsed() > PATIENCE;
        let given_up = self
            .open
            .extract_if(|socket, (since, _)| gone(socket, since));
        for (_, (_, records)) in given_up {
            for record in records {
                record.end_elsewhere(&Ended::default(), Some(&DirectError::Lost));
            }
        }
    }
}

impl Drop for Accounts {
    /// The connections go on without this process, and another one will report their ends.
    fn drop(&mut self) {
        for (_, (_, records)) in self.open.drain() {
            records.into_iter().for_each(Record::leave);
        }
    }
}

/// What the mesh knows of a connection.
fn facts(flow: &Flow, view: &View, network: &str) -> SmallVec<[Facts; 2]> {
    let at = |ip| view.mesh.workload_by_address(network, ip).cloned();
    let own = view.workload(flow.pod).cloned();
    let mut facts = Facts {
        reporter: Reporter::Source,
        began: Instant::now(),
        client: flow.client,
        source: None,
        source_identity: None,
        destination: flow.server,
        hbone: None,
        workload: None,
        destination_identity: None,
        service: None,
    };
    if flow.opener == Opener::Outside {
        facts.reporter = Reporter::Destination;
        facts.source = at(flow.client.ip());
        facts.workload = own.or_else(|| at(flow.server.ip()));
        return smallvec![facts];
    }
    facts.source = own.or_else(|| at(flow.client.ip()));
    facts.service = view
        .mesh
        .service_by_vip(network, flow.dialled.ip())
        .cloned();
    let Some(server) = flow.server_pod else {
        facts.workload = at(flow.server.ip());
        return smallvec![facts];
    };
    facts.workload = view
        .workload(server)
        .cloned()
        .or_else(|| at(flow.server.ip()));
    let identity = |workload: &Option<Arc<Workload>>| {
        workload.as_ref().map(|workload| workload.identity.clone())
    };
    facts.source_identity = identity(&facts.source);
    facts.destination_identity = identity(&facts.workload);
    let arrival = Facts {
        reporter: Reporter::Destination,
        service: None,
        ..facts.clone()
    };
    smallvec![facts, arrival]
}
