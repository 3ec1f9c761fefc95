//! On-demand discovery: where this node knows only a part of the mesh, the control plane is asked
//! for the resources of a connection before the connection is authorized.
//!
//! A connection goes to a destination in plaintext only after the answer that it is not in the mesh,
//! or that its address belongs to services and to no workload. If no answer arrives, the connection
//! is refused. An absent resource may be added later without a push, so the answer is valid for
//! [`LEASE`]; fast-path entries that rest on it live at most half of that longer
//! ([`FastPath::expire`](crate::fastpath::FastPath::expire)). Both the stored answers and the
//! requests of one pod are bounded.

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

use mesh::{FetchOutcome, NetworkAddress, ResourceKey, Snapshot};

/// How long the answer is valid that a resource is not in the mesh.
pub const LEASE: Duration = Duration::from_secs(10);
/// The most answers that are stored.
const ANSWERS_MAX: usize = 16384;
/// The requests that the connections of one pod may make in a second, in each direction.
const PER_SECOND: u32 = 64;
/// The requests that an idle pod may make at once.
const BURST: u32 = 256;
/// The longest time that the rate limit may delay a request.
const DELAY_MAX: Duration = Duration::from_secs(5);
/// How long a connection waits for the name of its client, which authorization does not need.
const NAME_TIMEOUT: Duration = Duration::from_millis(500);
/// How long no connection waits for a client's name after one has waited in vain.
const NAME_BACKOFF: Duration = Duration::from_secs(5);
/// The most requests of one connection: for its waypoint, a gateway, the services of its
/// destination.
const MAX_REQUESTS: usize = 64;

/// The answer to a request.
pub type DiscoveryFuture = Pin<Box<dyn Future<Output = FetchOutcome> + Send>>;

/// Requests single resources from the control plane. Bounded in time.
pub trait ResourceFetcher: fmt::Debug + Send + Sync {
    /// Requests a resource, and returns when the answer is in force. May be awaited on any thread.
    fn fetch(&self, key: &ResourceKey) -> DiscoveryFuture;
}

/// The control plane has not said whether a resource is in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot find out whether {key} is in the mesh: the control plane gave no usable answer; the \
     connection is refused, because a destination in the mesh must not be reached in plaintext"
)]
pub struct DiscoveryFailed {
    /// The requested resource.
    pub key: ResourceKey,
}

/// Requests resources for all workers, and stores which ones are absent.
#[derive(Debug)]
pub struct OnDemandClient {
    fetcher: Arc<dyn ResourceFetcher>,
    answers: Mutex<AbsentResources>,
}

impl OnDemandClient {
    /// A client without stored answers.
    #[must_use]
    pub fn new(fetcher: Arc<dyn ResourceFetcher>) -> Self {
        Self {
            fetcher,
            answers: Mutex::new(AbsentResources::new()),
        }
    }

    /// Whether the control plane has answered within [`LEASE`] that a resource is not in the mesh.
    #[must_use]
    pub fn is_absent(&self, key: &ResourceKey) -> bool {
        self.answers().contains(key, Instant::now())
    }

    /// Requests a resource as soon as the pod's rate limit allows, unless a stored answer is valid.
    async fn fetch(&self, key: &ResourceKey, limiter: &RateLimiter) -> FetchOutcome {
        if self.is_absent(key) {
            return FetchOutcome::Absent;
        }
        match limiter.reserve(Instant::now()) {
            None => return FetchOutcome::Unknown,
            Some(Duration::ZERO) => {}
            Some(delay) => {
                tokio::time::sleep(delay).await;
                if self.is_absent(key) {
                    return FetchOutcome::Absent;
                }
            }
        }
        let fetched = self.fetcher.fetch(key).await;
        // A pod often starts before the control plane knows its workload: that answer is not stored.
        if fetched == FetchOutcome::Absent && !matches!(key, ResourceKey::Workload(_)) {
            self.answers().insert(key, Instant::now());
        }
        fetched
    }

    /// Requests the workload of a client, so that records can name it. Authorization does not need
    /// it: without a timely answer the connection continues.
    pub(super) async fn fetch_client_name(&self, key: &ResourceKey, limiter: &RateLimiter) {
        let backoff = self.answers().name_backoff;
        if backoff.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let fetched = tokio::time::timeout(NAME_TIMEOUT, self.fetch(key, limiter)).await;
        if !matches!(fetched, Ok(FetchOutcome::Found | FetchOutcome::Absent)) {
            self.answers().name_backoff = Some(Instant::now() + NAME_BACKOFF);
        }
    }

    fn answers(&self) -> MutexGuard<'_, AbsentResources> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resources that are not in the mesh, and until when each answer is valid.
#[derive(Debug)]
struct AbsentResources {
    until: HashMap<ResourceKey, Instant>,
    /// The oldest answer first.
    order: VecDeque<(Instant, ResourceKey)>,
    /// Until when no connection waits for a client's name.
    name_backoff: Option<Instant>,
}

impl AbsentResources {
    fn new() -> Self {
        Self {
            until: HashMap::new(),
            order: VecDeque::new(),
            name_backoff: None,
        }
    }

    fn contains(&self, key: &ResourceKey, now: Instant) -> bool {
        self.until.get(key).is_some_and(|until| now < *until)
    }

    fn insert(&mut self, key: &ResourceKey, now: Instant) {
        let until = now + LEASE;
        self.until.insert(key.clone(), until);
        self.order.push_back((until, key.clone()));
        while let Some((until, _)) = self.order.front()
            && (*until <= now || self.order.len() > ANSWERS_MAX)
            && let Some((until, key)) = self.order.pop_front()
        {
            // A newer answer for the same key stays.
            if self.until.get(&key) == Some(&until) {
                self.until.remove(&key);
            }
        }
    }
}

/// Limits the requests of one pod's connections on one worker: a pod that scans addresses must not
/// overload the control plane or delay other pods.
#[derive(Debug)]
pub(super) struct RateLimiter {
    /// The time between two requests at the sustained rate.
    interval: Duration,
    burst: Duration,
    /// When the next request is due at the sustained rate.
    due: Cell<Option<Instant>>,
}

impl RateLimiter {
    /// The share of one worker of this many.
    pub(super) fn new(workers: usize) -> Self {
        let workers = u32::try_from(workers).unwrap_or(u32::MAX).max(1);
        let interval = Duration::from_secs(1) * workers / PER_SECOND;
        Self {
            interval,
            burst: interval * (BURST / workers),
            due: Cell::new(None),
        }
    }

    /// Reserves a request. Returns the delay before it; none if that would be too long.
    fn reserve(&self, now: Instant) -> Option<Duration> {
        let due = self.due.get().map_or(now, |due| due.max(now));
        let delay = due.duration_since(now).saturating_sub(self.burst);
        if delay > DELAY_MAX {
            return None;
        }
        self.due.set(Some(due + self.interval));
        Some(delay)
    }
}

/// The answers that one connection has received.
#[derive(Debug, Default)]
pub(super) struct Discovered {
    /// Resources that are not in the mesh.
    pub(super) absent: SmallVec<[ResourceKey; 1]>,
    requested: SmallVec<[ResourceKey; 1]>,
}

impl Discovered {
    /// Whether this connection has requested an address and the answer was a service, by its address
    /// or by a range that contains it, and no workload. Then no workload of the mesh has the address,
    /// and the address is stored as absent.
    pub(super) fn found_only_service(
        &mut self,
        on_demand: Option<&OnDemandClient>,
        key: &ResourceKey,
        mesh: &Snapshot,
    ) -> bool {
        let only_service = self.requested.contains(key) && belongs_only_to_services(key, mesh);
        if only_service && !self.absent.contains(key) {
            self.absent.push(key.clone());
            if let Some(on_demand) = on_demand {
                on_demand.answers().insert(key, Instant::now());
            }
        }
        only_service
    }

    /// Requests a resource.
    ///
    /// # Errors
    /// When there is no answer, or when this connection has requested the resource before: a second
    /// answer would be the same.
    pub(super) async fn fetch(
        &mut self,
        on_demand: Option<&OnDemandClient>,
        limiter: &RateLimiter,
        key: ResourceKey,
    ) -> Result<(), DiscoveryFailed> {
        let Some(on_demand) = on_demand else {
            return Err(DiscoveryFailed { key });
        };
        if self.requested.contains(&key) || self.requested.len() >= MAX_REQUESTS {
            return Err(DiscoveryFailed { key });
        }
        self.requested.push(key.clone());
        match on_demand.fetch(&key, limiter).await {
            FetchOutcome::Found => {}
            FetchOutcome::Absent => self.absent.push(key),
            FetchOutcome::Unknown => return Err(DiscoveryFailed { key }),
        }
        Ok(())
    }
}

/// Whether an address belongs to services and to no workload.
fn belongs_only_to_services(key: &ResourceKey, mesh: &Snapshot) -> bool {
    let ResourceKey::Address(NetworkAddress { network, address }) = key else {
        return false;
    };
    let workload = mesh.workload_by_address(network, *address);
    workload.is_none() && mesh.knows_address(network, *address)
}

#[cfg(test)]
mod tests;
