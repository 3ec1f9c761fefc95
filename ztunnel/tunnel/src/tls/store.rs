//! The certificates in use, one per identity, renewed before they end.
//!
//! A task per identity on the main runtime issues, waits for half of the lifetime and issues
//! again; while the authority is away it retries with back-off and the old certificate serves on.
//! Connections read the current certificate without a lock; only who finds none waits, together
//! with everybody else who wants the same. Called by `path` for each connection, by `node` when
//! pods come and go.
//!
//! Only identities that pods here need ([`Store::prefetch`]) are renewed, until they are forgotten.
//! A connection of a pod that has just left may still ask for one: it gets it, and when the time to
//! renew comes and nobody waits, that is the end of it. Else the authority would be asked for ever
//! for a service account that this node has no pod of.

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

/// How issuing is timed, and who is refused.
#[derive(Debug, Clone)]
pub struct Config {
    /// First pause after a failed attempt; doubles up to [`Self::retry_max`]. Also the shortest
    /// time between two attempts for one identity, however many callers want it.
    pub retry_min: Duration,
    /// Longest pause between attempts.
    pub retry_max: Duration,
    /// After this long an attempt counts as failed.
    pub attempt_timeout: Duration,
    /// How many certificates are asked for at a time. Those that a connection waits for go first.
    pub concurrency: usize,
    /// The certificates that are not to be accepted from peers.
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

/// One identity's place.
struct Entry {
    slot: Arc<Slot>,
    attempts: watch::Receiver<Attempt>,
    task: AbortHandle,
}

/// Whether there is a reason to renew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// A connection has asked, and no pod is known that goes on needing it.
    Passing,
    /// A pod here needs it.
    Lasting,
    /// None, and the task ends.
    Over,
}

/// What an identity's task shares with those who read its work.
struct Slot {
    identity: Identity,
    need: Mutex<Need>,
    current: ArcSwapOption<Credentials>,
    /// Somebody waits for a certificate: do not sleep out the back-off.
    wanted: Notify,
    /// The certificate is to be replaced before its time.
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

    /// From now on it is renewed. Returns false when it is too late for that.
    fn keep(&self) -> bool {
        let mut need = self.need();
        if *need != Need::Over {
            *need = Need::Lasting;
        }
        *need == Need::Lasting
    }

    /// Returns whether there is no reason to renew, and never will be.
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
    /// A store that asks `issuer` on `runtime`.
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

    /// The certificate of an identity, never an expired one. Returns at once when it is there;
    /// else waits for the attempt under way, or for a new one.
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
            // Issued between the look and the mark?
            if let Some(credentials) = entry.slot.valid() {
                return Ok(credentials);
            }
            entry.slot.wanted.notify_one();
            let ended = attempts.changed().await.is_err();
            // Over in the very moment it was asked: the next one is not.
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

    /// Starts issuing for an identity that will be wanted soon.
    /// It is renewed until it is forgotten.
    pub fn prefetch(&self, identity: &Identity) {
        while !self.entry(identity).slot.keep() {}
    }

    /// Has every certificate issued anew soon, for example because the mesh's roots changed. The
    /// old ones serve until then.
    pub fn renew_all(&self) {
        for entry in self.entries.load().values() {
            entry.slot.outdated.notify_one();
        }
    }

    /// The certificates that are not accepted from peers.
    #[must_use]
    pub const fn revocations(&self) -> &Revocations {
        &self.config.revocations
    }

    /// Stops renewing and forgets the certificate. Sessions that use it live on.
    pub fn forget(&self, identity: &Identity) {
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = HashMap::clone(&self.entries.load());
        if let Some(entry) = entries.remove(identity) {
            entry.task.abort();
        }
        self.entries.store(Arc::new(entries));
    }

    /// What is there, ordered by identity.
    #[must_use]
    pub fn inventory(&self) -> Vec<CertificateSummary> {
        let now = SystemTime::now();
        let entries = self.entries.load();
        let all = entries.values().filter(|entry| !entry.is_over());
        let mut all: Vec<_> = all.map(|entry| entry.summary(now)).collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }

    /// The place of an identity, made if it is missing or its task has ended.
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
        // Where a task has died, the need for it has not.
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

/// The task that keeps one identity's certificate fresh.
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
                    // However short the lifetime is, the issuer gets a rest.
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

    /// Sleeps, but no longer than until somebody finds no valid certificate, or says that it is
    /// outdated. Wall-clock jumps and suspended machines are caught that way too.
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
            // Who waits is seen even in the moment the pause is over.
            biased;
            () = wanted => Slept::Woken,
            () = outdated => Slept::Woken,
            () = tokio::time::sleep(pause) => Slept::Out,
        }
    }
}

/// How a pause has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slept {
    /// Somebody wants a certificate now.
    Woken,
    /// By itself.
    Out,
}

/// How long to wait before a certificate is renewed: half of what is left of its life, up to a
/// tenth earlier so that the certificates of a node are not all renewed in the same second.
fn renew_after(not_after: SystemTime, now: SystemTime, jitter: f64) -> Duration {
    let left = not_after.duration_since(now).unwrap_or_default();
    left.mul_f64(0.5 * (1.0 - jitter))
}

/// A number from 0 to 0.1.
fn jitter() -> f64 {
    rand::random_range(0.0..0.1)
}

#[cfg(test)]
mod tests;
