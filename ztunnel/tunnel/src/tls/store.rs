//! The certificates in use, one for each identity, renewed before they expire.
//!
//! A task for each identity on the main runtime issues a certificate, waits for half of its
//! lifetime and issues a new one. While the authority is unreachable, the task retries with
//! back-off and the old certificate stays in use. Connections read the current certificate without
//! a lock; a connection that finds none waits for the attempt in progress, together with all others
//! for the same identity. `node` calls it for each connection, and when pods are added or removed.
//!
//! Only identities that local pods need ([`Store::prefetch`]) are renewed, until they are
//! forgotten. A connection of a pod that was just removed may still request a certificate: it gets
//! one, but that one is not renewed unless a connection waits for it. Otherwise the proxy would
//! request certificates for ever for a service account without a pod on this node.

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
use super::revocation::Revocations;
use super::turns::Turns;
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
    /// How many certificates are requested at a time. Those that a connection waits for go first.
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
    turns: Arc<Turns>,
    entries: ArcSwap<HashMap<Identity, Arc<Entry>>>,
    /// Serialises changes of `entries`.
    changes: Mutex<()>,
}

/// The certificate of one identity, and the task that renews it.
struct Entry {
    slot: Arc<Slot>,
    attempts: watch::Receiver<Attempt>,
    task: AbortHandle,
}

/// Whether a certificate has to be renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// A connection requested it, and no local pod is known to need it further.
    Passing,
    /// A local pod needs it.
    Lasting,
    /// It is not needed, and the task ends.
    Over,
}

/// The state that an identity's task shares with its readers.
struct Slot {
    identity: Identity,
    need: Mutex<Need>,
    current: ArcSwapOption<Credentials>,
    /// A caller waits for a certificate: end the back-off early.
    wanted: Notify,
    /// The certificate must be replaced before its renewal time.
    outdated: Notify,
}

/// The outcome of the last attempt.
#[derive(Clone, Default)]
struct Attempt {
    failure: Option<Arc<IssueError>>,
}

impl Slot {
    fn need(&self) -> MutexGuard<'_, Need> {
        self.need.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the certificate from now on. Returns false when the task has already ended.
    fn keep(&self) -> bool {
        let mut need = self.need();
        if *need != Need::Over {
            *need = Need::Lasting;
        }
        *need == Need::Lasting
    }

    /// Ends the renewal when no pod needs it. Returns whether it has ended.
    fn let_go(&self) -> bool {
        let mut need = self.need();
        if *need == Need::Passing {
            *need = Need::Over;
        }
        *need == Need::Over
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
            turns: Turns::new(config.concurrency),
            config,
            runtime,
            entries: ArcSwap::default(),
            changes: Mutex::new(()),
        })
    }

    /// The certificate of an identity, never an expired one. Returns at once when there is a valid
    /// one; otherwise waits for the attempt in progress, or for a new one.
    ///
    /// # Errors
    /// [`Error::Issue`] when that attempt fails and no valid certificate is left.
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
            entry.slot.wanted.notify_one();
            let ended = attempts.changed().await.is_err();
            // The task ended just as this call requested a certificate: a new task will answer.
            if !(ended && entry.is_over()) {
                break (ended, entry, attempts);
            }
        };
        if let Some(credentials) = entry.slot.valid() {
            return Ok(credentials);
        }
        let failure = attempts.borrow().failure.clone();
        let cause = failure
            .filter(|_| !ended)
            .unwrap_or_else(|| Arc::new(IssueError::GivenUp));
        Err(Error::Issue {
            identity: identity.clone(),
            cause,
        })
    }

    /// Starts issuing for an identity that will be needed soon. Its certificate is renewed until
    /// the identity is forgotten.
    pub fn prefetch(&self, identity: &Identity) {
        while !self.entry(identity).slot.keep() {}
    }

    /// Replaces every certificate soon, for example because the mesh's roots changed. The old ones
    /// stay in use until then.
    pub fn renew_all(&self) {
        for entry in self.entries.load().values() {
            entry.slot.outdated.notify_one();
        }
    }

    /// The revocation lists that peers are checked against.
    #[must_use]
    pub const fn revocations(&self) -> &Revocations {
        &self.config.revocations
    }

    /// Stops renewing and forgets the certificate. Sessions that use it continue.
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
        let all = entries.values().filter(|entry| !entry.is_over());
        let mut all: Vec<_> = all.map(|entry| entry.summary(now)).collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }

    /// The entry of an identity, created if it is missing or its task has ended.
    fn entry(&self, identity: &Identity) -> Arc<Entry> {
        let alive = |entry: &&Arc<Entry>| !entry.is_over() && !entry.task.is_finished();
        if let Some(entry) = self.entries.load().get(identity).filter(alive) {
            return entry.clone();
        }
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = HashMap::clone(&self.entries.load());
        if let Some(entry) = entries.get(identity).filter(alive) {
            return entry.clone();
        }
        entries.retain(|_, entry| !entry.is_over());
        // A new task that replaces a panicked one keeps its need.
        let need = entries.get(identity).map(|died| *died.slot.need());
        let slot = Arc::new(Slot {
            identity: identity.clone(),
            need: Mutex::new(need.unwrap_or(Need::Passing)),
            current: ArcSwapOption::empty(),
            wanted: Notify::new(),
            outdated: Notify::new(),
        });
        let (report, attempts) = watch::channel(Attempt::default());
        let renewal = Renewal {
            issuer: self.issuer.clone(),
            config: self.config.clone(),
            turns: self.turns.clone(),
            slot: slot.clone(),
            report,
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
    fn is_over(&self) -> bool {
        *self.slot.need() == Need::Over
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
    turns: Arc<Turns>,
    slot: Arc<Slot>,
    report: watch::Sender<Attempt>,
}

impl Renewal {
    async fn run(self) {
        let mut pause = self.config.retry_min;
        loop {
            let turn = self.turns.take(self.slot.wanted.notified()).await;
            let attempted = Instant::now();
            let outcome = self.attempt().await;
            drop(turn);
            let slept = match outcome {
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
                    self.report.send_replace(Attempt { failure: None });
                    self.sleep(attempted, wait).await
                }
                Err(failure) => {
                    tracing::warn!(
                        identity = %self.slot.identity,
                        retry_in = ?pause,
                        serving_old = self.slot.valid().is_some(),
                        "no certificate: {failure}"
                    );
                    self.report.send_replace(Attempt {
                        failure: Some(Arc::new(failure)),
                    });
                    let wait = pause.mul_f64(1.0 - jitter());
                    pause = (pause * 2).min(self.config.retry_max);
                    self.sleep(attempted, wait).await
                }
            };
            if slept == Slept::Out && self.slot.let_go() {
                tracing::debug!(identity = %self.slot.identity, "no pod here needs the certificate: not renewed");
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
            why: format!("no answer in {limit:?}"),
        })??;
        Credentials::new(identity, issued, &self.config.revocations).map(Arc::new)
    }

    /// Sleeps until the pause is over, a caller finds no valid certificate, or the certificate is
    /// marked as outdated. A caller thus ends the pause after a wall-clock jump or a suspend as
    /// well.
    async fn sleep(&self, attempted: Instant, pause: Duration) -> Slept {
        let earliest = attempted + self.config.retry_min.min(pause);
        let wanted = async {
            tokio::time::sleep_until(earliest).await;
            loop {
                self.slot.wanted.notified().await;
                if self.slot.valid().is_none() {
                    break;
                }
            }
        };
        let outdated = async {
            tokio::time::sleep_until(earliest).await;
            self.slot.outdated.notified().await;
        };
        tokio::select! {
            // `biased`: a waiting caller takes precedence over the end of the pause.
            biased;
            () = wanted => Slept::Woken,
            () = outdated => Slept::Woken,
            () = tokio::time::sleep(pause) => Slept::Out,
        }
    }
}

/// Why a pause ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slept {
    /// A certificate is needed now.
    Woken,
    /// The time was over.
    Out,
}

/// How long to wait before a certificate is renewed: half of its remaining lifetime, less up to a
/// tenth of that, so that a node does not renew all its certificates in the same second.
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
