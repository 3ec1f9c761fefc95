//! Where the control plane tells only what it is asked for: the questions of the path, and those
//! about the node's own pods, which are asked as soon as they are enrolled.
//!
//! After a start the kernel holds verdicts and connections of an earlier process, which cannot be
//! judged before the own workloads are known. So judgement waits for these, but not for ever.
//!
//! A pod is often announced before the control plane knows it, and of what it did not know when it was
//! asked the control plane does not tell later. What the pod dials meanwhile waits for its workload, so
//! that is asked for again soon.

use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashSet};
use tokio::task::JoinSet;

use crate::Node;
use crate::discovery::Ask;
use crate::discovery::DiscoveryFuture;
use crate::discovery::LEASE;
use crate::discovery::OnDemandClient;
use mesh::{DemandKey, Snapshot, Uid};
use upstream::ads::Demand;

/// How long the first judgement waits for the workloads of the own pods.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often verdicts are looked through for answers that no longer hold.
const EXPIRE_EVERY: Duration = LEASE.checked_div(2).unwrap();

/// How often the workload of a pod that has just come is asked for.
const AGAIN: Duration = Duration::from_millis(500);
/// For how long a pod counts as one that has just come; later its workload is asked for as often as
/// verdicts are looked through.
const NEW: Duration = Duration::from_secs(30);

/// The control plane as the path asks it.
#[derive(Debug)]
struct Asker(Demand);

impl Ask for Asker {
    fn ask(&self, key: &DemandKey) -> DiscoveryFuture {
        let (demand, key) = (self.0.clone(), key.clone());
        Box::pin(async move { demand.fetch(&key).await })
    }
}

/// What all workers ask, if the control plane does not tell everything.
pub(crate) fn on_demand(demand: Option<&Demand>) -> Option<Arc<OnDemandClient>> {
    let asker = Asker(demand?.clone());
    Some(Arc::new(OnDemandClient::new(Arc::new(asker))))
}

/// What is asked about the node's own pods.
#[derive(Debug)]
pub(crate) struct OwnPods {
    demand: Option<Demand>,
    /// Those that need not be asked for now.
    asked: HashSet<Uid>,
    /// Those that the mesh does not know, since when.
    unknown: HashMap<Uid, Instant>,
    asking: JoinSet<Uid>,
    /// When those that have just come are asked for again.
    again: Option<Instant>,
    /// Whether judgement waits for them, and until when, as soon as it is known who they are.
    holds: bool,
    until: Option<Instant>,
    /// When verdicts are looked through next.
    expire: Option<Instant>,
}

impl OwnPods {
    pub(crate) fn new(demand: Option<&Demand>) -> Self {
        let now = demand.map(|_| Instant::now());
        Self {
            demand: demand.cloned(),
            asked: HashSet::default(),
            unknown: HashMap::default(),
            asking: JoinSet::new(),
            again: None,
            holds: demand.is_some(),
            until: None,
            expire: now.map(|now| now + EXPIRE_EVERY),
        }
    }

    /// Asks for those that the mesh does not know. The answer changes the mesh, and so is heard of.
    pub(crate) fn ask(&mut self, pods: impl Iterator<Item = Uid>, mesh: &Snapshot) {
        let Some(demand) = &self.demand else {
            return;
        };
        let now = Instant::now();
        let previous_proxy = std::mem::take(&mut self.unknown);
        for uid in pods.filter(|uid| mesh.workload_by_uid(uid).is_none()) {
            let since = previous_proxy.get(&uid).copied().unwrap_or(now);
            self.unknown.insert(uid.clone(), since);
            if self.asked.insert(uid.clone()) {
                let (demand, key) = (demand.clone(), DemandKey::Workload(uid.clone()));
                self.asking.spawn(async move {
                    demand.fetch(&key).await;
                    uid
                });
            }
        }
        let new = self.unknown.values().any(|since| now < *since + NEW);
        self.again = new.then(|| self.again.unwrap_or(now + AGAIN));
    }

    /// Lets those be asked for again that have just come and whose question is over.
    fn ask_again(&mut self) {
        self.again = None;
        let now = Instant::now();
        while let Some(asked) = self.asking.try_join_next() {
            let Ok(uid) = asked else { continue };
            let since = self.unknown.get(&uid);
            if since.is_some_and(|since| now < *since + NEW) {
                self.asked.remove(&uid);
            }
        }
    }

    /// Whether judgement is to wait.
    pub(crate) const fn holds(&self) -> bool {
        self.holds
    }

    /// All pods have been named, and all of them are `known` or not.
    fn named(&mut self, known: bool) {
        if known {
            self.release();
        } else if self.holds {
            self.until.get_or_insert_with(|| Instant::now() + PATIENCE);
        }
    }

    /// Judgement waits no longer.
    fn release(&mut self) {
        self.holds = false;
        self.until = None;
    }

    /// When there is something to be done: the wait is over, or verdicts are to be looked through.
    pub(crate) fn due(&self) -> Option<Instant> {
        let due = self.until.into_iter().chain(self.expire);
        due.chain(self.again).min()
    }

    /// Verdicts were looked through. What was asked for and is not known yet is asked for again.
    fn expired(&mut self) {
        while self.asking.try_join_next().is_some() {}
        self.asked.clear();
        self.expire = self.expire.map(|_| Instant::now() + EXPIRE_EVERY);
    }
}

impl Node {
    /// Asks for the workloads of pods that the mesh does not know. Judgement waits no longer when
    /// all that are enrolled are known.
    pub(crate) fn ask_for_own(&mut self) {
        let pods = self.enrollment.pods();
        let mesh = self.mesh.current();
        let uids = pods.iter().map(|pod| pod.uid.clone());
        self.own.ask(uids, mesh);
        let known = pods
            .iter()
            .all(|pod| mesh.workload_by_uid(&pod.uid).is_some());
        let named = self
            .agent
            .as_ref()
            .is_none_or(|agent| agent.hold().is_none());
        if named && self.pending.is_none() && self.mesh.is_known() {
            self.own.named(known);
        }
    }

    /// Does what is due: judges without what the control plane has not told of the own pods, takes
    /// back what rests on answers that no longer hold.
    pub(crate) fn attend_to_own(&mut self) {
        let now = Instant::now();
        if self.own.until.is_some_and(|until| until <= now) {
            self.own.release();
            self.reauthorize();
        }
        if self.own.again.is_some_and(|again| again <= now) {
            self.own.ask_again();
            self.ask_for_own();
        }
        if self.own.expire.is_some_and(|expire| expire <= now) {
            // Before the first judgement what an earlier process has let go holds.
            if !self.reauthorization_waits() {
                self.shared.fast_path.expire();
            }
            self.own.expired();
            let waited = self.own.holds();
            self.ask_for_own();
            if waited && !self.own.holds() {
                self.reauthorize();
            }
        }
    }
}
