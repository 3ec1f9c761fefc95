//! The certificates in use, one for each identity, renewed before they expire.
//!
//! For each identity, a task on the main runtime requests a certificate, waits for half of its
//! lifetime and requests a new one. While the authority is unreachable, the task retries with
//! back-off and the old certificate stays in use. Connections read the current certificate without
//! a lock; connections that find none wait together for the attempt in progress. `node` calls the
//! store for each connection, and when pods are added or removed.
//!
//! Only identities of local pods ([`Store::prefetch`]) are renewed, until [`Store::forget`]. A
//! connection of a pod that was just removed may still request a certificate: it gets one, which is
//! not renewed unless another connection waits for it. Otherwise the proxy would for ever request
//! certificates for a service account without a pod on this node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::credentials::{CertificateState, CertificateSummary, Credentials};
use super::error::{Error, IssueError};
use super::issuer::Issuer;
use super::request_limit::RequestLimit;
use super::revocation::Revocations;
use mesh::Identity;

/// The timing of issuing, and the revocation lists that peers are checked against.
#[derive(Debug, Clone)]
pub struct Config {
    /// First pause after a failed attempt; doubles up to [`Self::retry_max`]. Also the shortest
    /// time between two attempts for one identity, whatever the number of callers.
    pub retry_min: Duration,
    /// Longest pause between attempts.
    pub retry_max: Duration,
    /// An attempt that takes longer than this has failed.
    pub attempt_timeout: Duration,
    /// The number of concurrent certificate requests. Certificates that a connection waits for are
    /// requested first.
    pub concurrency: usize,
    /// The revocation lists that peers are checked against.
    pub revocations: Revocations,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            retry_min: Duration::from_millis(250),
            retry_max: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(10),
            concurrency: 8,
            revocations: Revocations::default(),
        }
    }
}

/// The certificates in use.
pub struct Store {
    issuer: Arc<dyn Issuer>,
    config: Config,
    runtime: Handle,
    request_limit: Arc<RequestLimit>,
    entries: ArcSwap<HashMap<Identity, Arc<Entry>>>,
    /// Serialises changes of `entries`.
    changes: Mutex<()>,
}

/// The certificate of one identity, and the task that renews it.
struct Entry {
    slot: Arc<CertificateSlot>,
    attempts: watch::Receiver<Attempt>,
    task: AbortHandle,
}

/// What a certificate is needed for, and so whether it is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CertificateDemand {
    /// A connection requested it; no local pod is known to have the identity. Not renewed.
    Connection,
    /// A local pod has the identity. Renewed.
    Pod,
    /// Nothing: the task has ended.
    Ended,
}

/// The state that an identity's task shares with its readers.
struct CertificateSlot {
    identity: Identity,
    demand: Mutex<CertificateDemand>,
    current: ArcSwapOption<Credentials>,
    /// Notified when a caller waits for a certificate: ends the back-off early.
    requested: Notify,
    /// Notified when the certificate must be replaced before its renewal time.
    renew_now: Notify,
}

/// The outcome of the last attempt.
#[derive(Clone, Default)]
struct Attempt {
    failure: Option<Arc<IssueError>>,
}

impl CertificateSlot {
    fn demand(&self) -> MutexGuard<'_, CertificateDemand> {
        self.demand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the certificate from now on, for a local pod. Returns false if the task has ended.
    fn renew_for_pod(&self) -> bool {
        let mut demand = self.demand();
        if *demand != CertificateDemand::Ended {
            *demand = CertificateDemand::Pod;
        }
        *demand == CertificateDemand::Pod
    }

    /// Ends the renewal if no local pod has the identity. Returns whether it has ended.
    fn end_if_unneeded(&self) -> bool {
        let mut demand = self.demand();
        if *demand == CertificateDemand::Connection {
            *demand = CertificateDemand::Ended;
        }
        *demand == CertificateDemand::Ended
    }

    fn valid(&self) -> Option<Arc<Credentials>> {
        let current = self.current.load();
        let credentials = current.as_ref()?;
        credentials
            .is_valid_at(SystemTime::now())
            .then(|| credentials.clone())
    }
}

impl Store {
    /// A store that requests certificates from `issuer`; its tasks run on `runtime`.
    #[must_use]
    pub fn new(issuer: Arc<dyn Issuer>, config: Config, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            issuer,
            request_limit: RequestLimit::new(config.concurrency),
            config,
            runtime,
            entries: ArcSwap::default(),
            changes: Mutex::new(()),
        })
    }

    /// The certificate of an identity, never an expired one. Returns at once if there is a valid
    /// certificate; otherwise waits for the attempt in progress, or for a new attempt.
    ///
    /// # Errors
    /// [`Error::Issue`] when that attempt fails.
    pub async fn get(&self, identity: &Identity) -> Result<Arc<Credentials>, Error> {
        if let Some(entry) = self.entries.load().get(identity)
            && let Some(credentials) = entry.slot.valid()
        {
            return Ok(credentials);
        }
        let (ended, entry, attempts) = loop {
            let entry = self.entry(identity);
            let mut attempts = entry.attempts.clone();
            attempts.mark_unchanged();
            // The certificate may have been issued since the first check.
            if let Some(credentials) = entry.slot.valid() {
                return Ok(credentials);
            }
            entry.slot.requested.notify_one();
            let ended = attempts.changed().await.is_err();
            // If the task ended as this call requested a certificate, a new task is started.
            if !(ended && entry.has_ended()) {
                break (ended, entry, attempts);
            }
        };
        if let Some(credentials) = entry.slot.valid() {
            return Ok(credentials);
        }
        let failure = attempts.borrow().failure.clone();
        let cause = failure
            .filter(|_| !ended)
            .unwrap_or_else(|| Arc::new(IssueError::Cancelled));
        Err(Error::Issue {
            identity: identity.clone(),
            cause,
        })
    }

    /// Requests the certificate of an identity that a local pod has, and renews it until
    /// [`Self::forget`].
    pub fn prefetch(&self, identity: &Identity) {
        while !self.entry(identity).slot.renew_for_pod() {}
    }

    /// Replaces every certificate soon, for example because the mesh's roots changed. The old ones
    /// stay in use until then.
    pub fn renew_all(&self) {
        for entry in self.entries.load().values() {
            entry.slot.renew_now.notify_one();
        }
    }

    /// The revocation lists that peers are checked against.
    #[must_use]
    pub const fn revocations(&self) -> &Revocations {
        &self.config.revocations
    }

    /// Stops renewing the certificate and removes it. Sessions that use it continue.
    pub fn forget(&self, identity: &Identity) {
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = HashMap::clone(&self.entries.load());
        if let Some(entry) = entries.remove(identity) {
            entry.task.abort();
        }
        self.entries.store(Arc::new(entries));
    }

    /// All certificates, ordered by identity.
    #[must_use]
    pub fn inventory(&self) -> Vec<CertificateSummary> {
        let now = SystemTime::now();
        let entries = self.entries.load();
        let all = entries.values().filter(|entry| !entry.has_ended());
        let mut all: Vec<_> = all.map(|entry| entry.summary(now)).collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }

    /// The entry of an identity, created if it is missing or its task has ended.
    fn entry(&self, identity: &Identity) -> Arc<Entry> {
        let is_running = |entry: &&Arc<Entry>| !entry.has_ended() && !entry.task.is_finished();
        if let Some(entry) = self.entries.load().get(identity).filter(is_running) {
            return entry.clone();
        }
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = HashMap::clone(&self.entries.load());
        if let Some(entry) = entries.get(identity).filter(is_running) {
            return entry.clone();
        }
        entries.retain(|_, entry| !entry.has_ended());
        // A new task that replaces a panicked one serves the same demand.
        let demand = entries
            .get(identity)
            .map(|previous| *previous.slot.demand());
        let slot = Arc::new(CertificateSlot {
            identity: identity.clone(),
            demand: Mutex::new(demand.unwrap_or(CertificateDemand::Connection)),
            current: ArcSwapOption::empty(),
            requested: Notify::new(),
            renew_now: Notify::new(),
        });
        let (outcomes, attempts) = watch::channel(Attempt::default());
        let renewal = Renewal {
            issuer: self.issuer.clone(),
            config: self.config.clone(),
            request_limit: self.request_limit.clone(),
            slot: slot.clone(),
            outcomes,
        };
        let task = self.runtime.spawn(renewal.run()).abort_handle();
        let entry = Arc::new(Entry {
            slot,
            attempts,
            task,
        });
        entries.insert(identity.clone(), entry.clone());
        self.entries.store(Arc::new(entries));
        entry
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        for entry in self.entries.load().values() {
            entry.task.abort();
        }
    }
}

impl Entry {
    fn has_ended(&self) -> bool {
        *self.slot.demand() == CertificateDemand::Ended
    }

    fn summary(&self, now: SystemTime) -> CertificateSummary {
        if let Some(credentials) = &*self.slot.current.load() {
            return credentials.summary(now);
        }
        let failure = self.attempts.borrow().failure.clone();
        CertificateSummary {
            identity: self.slot.identity.clone(),
            state: match failure {
                None => CertificateState::Initializing,
                Some(cause) => CertificateState::Unavailable {
                    reason: cause.to_string(),
                },
            },
            serial: String::new(),
            not_before: 0,
            not_after: 0,
            chain: Vec::new(),
            roots: Vec::new(),
        }
    }
}

/// The task that renews one identity's certificate.
struct Renewal {
    issuer: Arc<dyn Issuer>,
    config: Config,
    request_limit: Arc<RequestLimit>,
    slot: Arc<CertificateSlot>,
    outcomes: watch::Sender<Attempt>,
}

impl Renewal {
    async fn run(self) {
        let mut pause = self.config.retry_min;
        loop {
            let permit = self
                .request_limit
                .acquire(self.slot.requested.notified())
                .await;
            let attempt_start = Instant::now();
            let outcome = self.attempt().await;
            drop(permit);
            let pause_end = match outcome {
                Ok(credentials) => {
                    pause = self.config.retry_min;
                    let wait = renew_after(credentials.not_after(), SystemTime::now(), jitter());
                    // Limits the request rate even when lifetimes are very short.
                    let wait = wait.max(self.config.retry_min);
                    tracing::debug!(
                        identity = %self.slot.identity,
                        serial = credentials.serial(),
                        renew_in = ?wait,
                        "certificate issued"
                    );
                    self.slot.current.store(Some(credentials));
                    self.outcomes.send_replace(Attempt { failure: None });
                    self.sleep(attempt_start, wait).await
                }
                Err(failure) => {
                    tracing::warn!(
                        identity = %self.slot.identity,
                        retry_in = ?pause,
                        serving_old = self.slot.valid().is_some(),
                        "cannot issue a certificate: {failure}"
                    );
                    self.outcomes.send_replace(Attempt {
                        failure: Some(Arc::new(failure)),
                    });
                    let wait = pause.mul_f64(1.0 - jitter());
                    pause = (pause * 2).min(self.config.retry_max);
                    self.sleep(attempt_start, wait).await
                }
            };
            if pause_end == PauseEnd::Elapsed && self.slot.end_if_unneeded() {
                tracing::debug!(identity = %self.slot.identity, "no pod of this node has the identity: its certificate is not renewed");
                break;
            }
        }
    }

    async fn attempt(&self) -> Result<Arc<Credentials>, IssueError> {
        let identity = &self.slot.identity;
        let limit = self.config.attempt_timeout;
        let issued = tokio::time::timeout(limit, self.issuer.issue(identity)).await;
        let issued = issued.map_err(|_elapsed| IssueError::Unavailable {
            issuer: "of the mesh".to_owned(),
            why: format!("no response within {limit:?}"),
        })??;
        Credentials::new(identity, issued, &self.config.revocations).map(Arc::new)
    }

    /// Sleeps until the pause has elapsed, a caller finds no valid certificate (also after the wall
    /// clock was changed or the machine was suspended), or the certificate must be replaced.
    async fn sleep(&self, attempt_start: Instant, pause: Duration) -> PauseEnd {
        let earliest = attempt_start + self.config.retry_min.min(pause);
        let requested = async {
            tokio::time::sleep_until(earliest).await;
            loop {
                self.slot.requested.notified().await;
                if self.slot.valid().is_none() {
                    break;
                }
            }
        };
        let renew_now = async {
            tokio::time::sleep_until(earliest).await;
            self.slot.renew_now.notified().await;
        };
        tokio::select! {
            // `biased`: a waiting caller takes precedence over the end of the pause.
            biased;
            () = requested => PauseEnd::RenewNow,
            () = renew_now => PauseEnd::RenewNow,
            () = tokio::time::sleep(pause) => PauseEnd::Elapsed,
        }
    }
}

/// Why a pause ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PauseEnd {
    /// A certificate is needed now.
    RenewNow,
    /// The time had elapsed.
    Elapsed,
}

/// The time until a certificate is renewed: half of its remaining lifetime, less up to a tenth of
/// that, so that a node does not renew all its certificates in the same second.
fn renew_after(not_after: SystemTime, now: SystemTime, jitter: f64) -> Duration {
    let left = not_after.duration_since(now).unwrap_or_default();
    left.mul_f64(0.5 * (1.0 - jitter))
}

/// A random number from 0 to 0.1.
fn jitter() -> f64 {
    rand::random_range(0.0..0.1)
}

#[cfg(test)]
mod tests;
