//! On-demand discovery of the node's own pods: their workloads are requested as soon as the pods are
//! enrolled.
//!
//! After a start the kernel holds fast-path entries and connections of a previous process. They
//! cannot be authorized before the workloads of the node's pods are known. So reauthorization waits
//! for these, for a bounded time.
//!
//! A pod is often announced before the control plane knows its workload, and the control plane does not
//! push later what it did not have when it was asked. The connections of the pod wait for its workload,
//! so the workload is requested again soon.

use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashSet};
use tokio::task::JoinSet;

use super::{DiscoveryFuture, LEASE, OnDemandClient, ResourceFetcher};
use crate::node::Node;
use mesh::{ResourceKey, Snapshot, Uid};
use upstream::ads::OnDemandFetcher;

/// How long the first reauthorization waits for the workloads of the node's pods.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// How often fast-path entries are checked for answers that are no longer valid.
const EXPIRY_INTERVAL: Duration = LEASE.checked_div(2).unwrap();

/// How often the workload of a new pod is requested.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long a pod is new. Later its workload is requested as often as fast-path entries are checked.
const NEW: Duration = Duration::from_secs(30);

/// Requests over the connection to the control plane.
#[derive(Debug)]
struct AdsFetcher(OnDemandFetcher);

impl ResourceFetcher for AdsFetcher {
    fn fetch(&self, key: &ResourceKey) -> DiscoveryFuture {
        let (fetcher, key) = (self.0.clone(), key.clone());
        Box::pin(async move { fetcher.fetch(&key).await })
    }
}

/// The client that all workers use; none without on-demand discovery.
pub(crate) fn on_demand(fetcher: Option<&OnDemandFetcher>) -> Option<Arc<OnDemandClient>> {
    let fetcher = AdsFetcher(fetcher?.clone());
    Some(Arc::new(OnDemandClient::new(Arc::new(fetcher))))
}

/// The requests for the workloads of the node's own pods.
#[derive(Debug)]
pub(crate) struct OwnPods {
    fetcher: Option<OnDemandFetcher>,
    /// Workloads that need not be requested now.
    requested: HashSet<Uid>,
    /// Workloads that the mesh does not have, and since when.
    unknown: HashMap<Uid, Instant>,
    requests: JoinSet<Uid>,
    /// When the workloads of new pods are requested again.
    next_retry: Option<Instant>,
    /// Whether reauthorization waits for the workloads.
    holds: bool,
    /// Until when it waits, once all pods are known.
    hold_until: Option<Instant>,
    /// When to check fast-path entries for expired answers next.
    next_expiry: Option<Instant>,
}

impl OwnPods {
    pub(crate) fn new(fetcher: Option<&OnDemandFetcher>) -> Self {
        let now = fetcher.map(|_| Instant::now());
        Self {
            fetcher: fetcher.cloned(),
            requested: HashSet::default(),
            unknown: HashMap::default(),
            requests: JoinSet::new(),
            next_retry: None,
            holds: fetcher.is_some(),
            hold_until: None,
            next_expiry: now.map(|now| now + EXPIRY_INTERVAL),
        }
    }

    /// Requests the workloads that the mesh does not know. The answer arrives as a change of the mesh.
    pub(crate) fn request(&mut self, pods: impl Iterator<Item = Uid>, mesh: &Snapshot) {
        let Some(fetcher) = &self.fetcher else {
            return;
        };
        let now = Instant::now();
        let previous = std::mem::take(&mut self.unknown);
        for uid in pods.filter(|uid| mesh.workload_by_uid(uid).is_none()) {
            let since = previous.get(&uid).copied().unwrap_or(now);
            self.unknown.insert(uid.clone(), since);
            if self.requested.insert(uid.clone()) {
                let (fetcher, key) = (fetcher.clone(), ResourceKey::Workload(uid.clone()));
                self.requests.spawn(async move {
                    fetcher.fetch(&key).await;
                    uid
                });
            }
        }
        let new = self.unknown.values().any(|since| now < *since + NEW);
        self.next_retry = new.then(|| self.next_retry.unwrap_or(now + RETRY_INTERVAL));
    }

    /// Lets the workloads of new pods be requested again whose last request has been answered.
    fn retry(&mut self) {
        self.next_retry = None;
        let now = Instant::now();
        while let Some(answered) = self.requests.try_join_next() {
            let Ok(uid) = answered else { continue };
            let since = self.unknown.get(&uid);
            if since.is_some_and(|since| now < *since + NEW) {
                self.requested.remove(&uid);
            }
        }
    }

    /// Whether reauthorization has to wait.
    pub(crate) const fn holds(&self) -> bool {
        self.holds
    }

    /// All pods have been announced; `known` says whether the mesh knows all their workloads.
    fn update_hold(&mut self, known: bool) {
        if known {
            self.stop_holding();
        } else if self.holds {
            self.hold_until
                .get_or_insert_with(|| Instant::now() + WAIT_MAX);
        }
    }

    /// Reauthorization no longer waits.
    fn stop_holding(&mut self) {
        self.holds = false;
        self.hold_until = None;
    }

    /// When the wait is over, or the next check of fast-path entries is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        let due = self.hold_until.into_iter().chain(self.next_expiry);
        due.chain(self.next_retry).min()
    }

    /// Schedules the next check, and lets workloads that are still unknown be requested again.
    fn restart_interval(&mut self) {
        while self.requests.try_join_next().is_some() {}
        self.requested.clear();
        self.next_expiry = self.next_expiry.map(|_| Instant::now() + EXPIRY_INTERVAL);
    }
}

impl Node {
    /// Requests the workloads of enrolled pods that the mesh does not know. When it knows all of them,
    /// reauthorization no longer waits.
    pub(crate) fn discover_own_pods(&mut self) {
        let pods = self.enrollment.pods();
        let mesh = self.mesh.current();
        let uids = pods.iter().map(|pod| pod.uid.clone());
        self.own_pods.request(uids, mesh);
        let known = pods
            .iter()
            .all(|pod| mesh.workload_by_uid(&pod.uid).is_some());
        let announced = self
            .agent
            .as_ref()
            .is_none_or(|agent| agent.snapshot_due().is_none());
        if announced && self.first_enrollment.is_none() && self.mesh.is_known() {
            self.own_pods.update_hold(known);
        }
    }

    /// Ends the wait for unknown workloads when it is over, and removes fast-path entries that rest on
    /// expired answers.
    pub(crate) fn handle_own_pods_due(&mut self) {
        let now = Instant::now();
        let own_pods = &mut self.own_pods;
        if own_pods.hold_until.is_some_and(|until| until <= now) {
            own_pods.stop_holding();
            self.reauthorize();
        }
        if self.own_pods.next_retry.is_some_and(|retry| retry <= now) {
            self.own_pods.retry();
            self.discover_own_pods();
        }
        if self
            .own_pods
            .next_expiry
            .is_some_and(|expiry| expiry <= now)
        {
            // Before the first reauthorization the entries of the previous process stay.
            if !self.reauthorization_waits() {
                self.shared.fast_path.expire();
            }
            self.own_pods.restart_interval();
            let waited = self.own_pods.holds();
            self.discover_own_pods();
            if waited && !self.own_pods.holds() {
                self.reauthorize();
            }
        }
    }
}
