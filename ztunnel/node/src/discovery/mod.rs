//! Where the mesh is known in part only, the control plane is asked for what a connection is about
//! before anything is judged, and the connection waits for the answer.
//!
//! Only "it is not in the mesh" lets anything pass in the clear, or an answer that names a service and
//! no workload; no answer is a refusal. What is not in the mesh now may be in it soon, and the control
//! plane does not tell of it: so that answer holds for [`LEASE`] and no longer, in the kernel's verdicts half of it longer at most ([`super::FastPath::expire`]). Everything
//! is bounded: the answers that are kept, and how often the connections of one pod may ask.

pub(crate) mod own_pods;

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt as _};
use smallvec::SmallVec;

use mesh::{DemandKey, Fetched, NetworkAddress, Snapshot};

/// How long the answer holds that something is not in the mesh.
pub const LEASE: Duration = Duration::from_secs(10);
/// How many such answers are kept.
const ANSWERS_MAX: usize = 16384;
/// Questions that the connections of one pod may ask in a second, in each direction.
const PER_SECOND: u32 = 64;
/// Those that it may ask at once after a rest.
const BURST: u32 = 256;
/// How long a question may have to wait for its turn.
const TURN_MAX: Duration = Duration::from_secs(5);
/// How long a connection waits for the name of its client, on which no judgement depends.
const NAME_PATIENCE: Duration = Duration::from_millis(500);
/// How long nobody waits for such a name after there was no answer.
const QUIET: Duration = Duration::from_secs(5);
/// What one connection may ask for, as its waypoint, a gateway, the services behind which it is.
const MOST_QUESTIONS: usize = 64;

/// What a question has for an answer.
pub type DiscoveryFuture = Pin<Box<dyn Future<Output = Fetched> + Send>>;

/// Asks the control plane for single things. Bounded in time.
pub trait Ask: fmt::Debug + Send + Sync {
    /// Asks, and returns when what was found is in force. It may be awaited on any thread.
    fn ask(&self, key: &DemandKey) -> DiscoveryFuture;
}

/// The control plane has not said whether something is in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "whether {key} is in the mesh is not known: the control plane gave no answer that could be used; \
     refused, because what is in the mesh must not be reached around it"
)]
pub struct DiscoveryFailed {
    /// What was asked for.
    pub key: DemandKey,
}

/// What all workers have asked.
#[derive(Debug)]
pub struct OnDemandClient {
    ask: Arc<dyn Ask>,
    answers: Mutex<Answers>,
}

impl OnDemandClient {
    /// Nothing was asked yet.
    #[must_use]
    pub fn new(ask: Arc<dyn Ask>) -> Self {
        Self {
            ask,
            answers: Mutex::new(Answers::new()),
        }
    }

    /// Whether the control plane has said a moment ago that something is not in the mesh.
    #[must_use]
    pub fn is_absent(&self, key: &DemandKey) -> bool {
        self.answers().is_absent(key, Instant::now())
    }

    /// Asks, if that is not known, as soon as the pod may.
    async fn ask(&self, key: &DemandKey, allowance: &RateLimiter) -> Fetched {
        if self.is_absent(key) {
            return Fetched::Absent;
        }
        match allowance.take(Instant::now()) {
            None => return Fetched::Unknown,
            Some(Duration::ZERO) => {}
            Some(turn) => {
                tokio::time::sleep(turn).await;
                if self.is_absent(key) {
                    return Fetched::Absent;
                }
            }
        }
        let fetched = self.ask.ask(key).await;
        // A pod is often here before the control plane knows it: that is asked each time.
        if fetched == Fetched::Absent && !matches!(key, DemandKey::Workload(_)) {
            self.answers().note(key, Instant::now());
        }
        fetched
    }

    /// Asks who a client is, so that records can name it. No judgement depends on that: where there
    /// is no answer soon, the connection goes on without.
    pub(super) async fn ask_for_name(&self, key: &DemandKey, allowance: &RateLimiter) {
        if self
            .answers()
            .quiet
            .is_some_and(|until| Instant::now() < until)
        {
            return;
        }
        let asked = tokio::time::timeout(NAME_PATIENCE, self.ask(key, allowance)).await;
        if !matches!(asked, Ok(Fetched::Found | Fetched::Absent)) {
            self.answers().quiet = Some(Instant::now() + QUIET);
        }
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is not in the mesh, the oldest answer first.
#[derive(Debug)]
struct Answers {
    until: HashMap<DemandKey, Instant>,
    order: VecDeque<(Instant, DemandKey)>,
    /// Until when nobody waits for names.
    quiet: Option<Instant>,
}

impl Answers {
    fn new() -> Self {
        Self {
            until: HashMap::new(),
            order: VecDeque::new(),
            quiet: None,
        }
    }

    fn is_absent(&self, key: &DemandKey, now: Instant) -> bool {
        self.until.get(key).is_some_and(|until| now < *until)
    }

    fn note(&mut self, key: &DemandKey, now: Instant) {
        let until = now + LEASE;
        self.until.insert(key.clone(), until);
        self.order.push_back((until, key.clone()));
        while let Some((until, _)) = self.order.front()
            && (*until <= now || self.order.len() > ANSWERS_MAX)
            && let Some((until, key)) = self.order.pop_front()
        {
            // Unless it was given anew since.
            if self.until.get(&key) == Some(&until) {
                self.until.remove(&key);
            }
        }
    }
}

/// How often the connections of one pod may ask, on one worker: a pod that dials every address there
/// is must neither keep the control plane busy nor the other pods waiting.
#[derive(Debug)]
pub(super) struct RateLimiter {
    /// The time between two questions of one who asks all the time.
    interval: Duration,
    burst: Duration,
    /// When the next one would be due.
    due: Cell<Option<Instant>>,
}

impl RateLimiter {
    /// The share of one of so many workers.
    pub(super) fn new(workers: usize) -> Self {
        let workers = u32::try_from(workers).unwrap_or(u32::MAX).max(1);
        let interval = Duration::from_secs(1) * workers / PER_SECOND;
        Self {
            interval,
            burst: interval * (BURST / workers),
            due: Cell::new(None),
        }
    }

    /// The time to wait before asking; none if that would be too long.
    fn take(&self, now: Instant) -> Option<Duration> {
        let due = self.due.get().map_or(now, |due| due.max(now));
        let wait = due.duration_since(now).saturating_sub(self.burst);
        if wait > TURN_MAX {
            return None;
        }
        self.due.set(Some(due + self.interval));
        Some(wait)
    }
}

/// What one connection has learned.
#[derive(Debug, Default)]
pub(super) struct Discovered {
    /// What is not in the mesh.
    pub(super) absent: SmallVec<[DemandKey; 1]>,
    asked: SmallVec<[DemandKey; 1]>,
}

impl Discovered {
    /// Whether an answer that something was found has told all there is: a service came of the
    /// question, by its address or a range that holds it, and no workload, so that nobody of the
    /// mesh is there. That is kept as what is absent.
    pub(super) fn knows(
        &mut self,
        on_demand: Option<&OnDemandClient>,
        key: &DemandKey,
        mesh: &Snapshot,
    ) -> bool {
        let told = self.asked.contains(key) && is_of_a_service_only(key, mesh);
        if told && !self.absent.contains(key) {
            self.absent.push(key.clone());
            if let Some(on_demand) = on_demand {
                on_demand.answers().note(key, Instant::now());
            }
        }
        told
    }

    /// Asks for something.
    ///
    /// # Errors
    /// When there is no answer, or it does not help: a second question for the same would have no
    /// other one.
    pub(super) async fn ask(
        &mut self,
        on_demand: Option<&OnDemandClient>,
        allowance: &RateLimiter,
        key: DemandKey,
    ) -> Result<(), DiscoveryFailed> {
        let Some(on_demand) = on_demand else {
            return Err(DiscoveryFailed { key });
        };
        if self.asked.contains(&key) || self.asked.len() >= MOST_QUESTIONS {
            return Err(DiscoveryFailed { key });
        }
        self.asked.push(key.clone());
        match on_demand.ask(&key, allowance).await {
            Fetched::Found => {}
            Fetched::Absent => self.absent.push(key),
            Fetched::Unknown => return Err(DiscoveryFailed { key }),
        }
        Ok(())
    }
}

/// Whether an address is one of services, and of no workload.
fn is_of_a_service_only(key: &DemandKey, mesh: &Snapshot) -> bool {
    let DemandKey::Address(NetworkAddress { network, address }) = key else {
        return false;
    };
    let workload = mesh.workload_by_address(network, *address);
    workload.is_none() && mesh.knows_address(network, *address)
}

/// What to ask for to learn who has an address of a network.

#[cfg(test)]
mod tests;
