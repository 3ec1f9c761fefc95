//! Backends that have a name instead of an address are resolved when somebody calls them.
//!
//! A worker must start no thread (it stays in a pod's namespace), and a resolver may need one:
//! so whatever resolves is behind [`Resolve`], and runs on the main thread's runtime. Waiting is
//! bounded, in time and in number.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// How long an answer counts. `getaddrinfo(3)` does not say for how long it may.
const KEPT: Duration = Duration::from_secs(5);

/// How many answers are kept.
const MOST_KEPT: usize = 1024;

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolver says so.
    #[error("{hostname} cannot be resolved: {source}")]
    Refused {
        /// The name.
        hostname: Arc<str>,
        /// What it said.
        source: io::Error,
    },
    /// There is such a name, without an address.
    #[error("{hostname} resolves to no address")]
    Empty {
        /// The name.
        hostname: Arc<str>,
    },
    /// The resolver did not answer.
    #[error("{hostname} was not resolved within {after:?}")]
    Timeout {
        /// The name.
        hostname: Arc<str>,
        /// The limit.
        after: Duration,
    },
}

impl ResolveError {
    /// The closed set of names for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "name_refused",
            Self::Empty { .. } => "name_without_address",
            Self::Timeout { .. } => "name_timeout",
        }
    }
}

/// What names have for an answer.
pub type Resolving = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, ResolveError>> + Send>>;

/// Finds the addresses of a name.
pub trait Resolve: fmt::Debug + Send + Sync {
    /// Asks for a name; the answer holds at least one address. It may be awaited on any thread and
    /// must start none there.
    fn resolve(&self, hostname: &Arc<str>) -> Resolving;
}

/// Asks the system, as `getaddrinfo(3)` does, on the runtime that it is given.
#[derive(Debug)]
pub struct SystemResolver {
    runtime: Handle,
    /// How many may ask at once: each needs a thread of the runtime's.
    places: Arc<Semaphore>,
    timeout: Duration,
    kept: Arc<Mutex<Kept>>,
}

/// What was found lately.
#[derive(Debug, Default)]
struct Kept(HashMap<Arc<str>, (Instant, Vec<IpAddr>)>);

impl Kept {
    fn get(&self, hostname: &str, now: Instant) -> Option<Vec<IpAddr>> {
        let (since, found) = self.0.get(hostname)?;
        (now.saturating_duration_since(*since) < KEPT).then(|| found.clone())
    }

    fn put(&mut self, hostname: &Arc<str>, found: &[IpAddr], now: Instant) {
        if self.0.len() >= MOST_KEPT {
            let fresh = |since: &Instant| now.saturating_duration_since(*since) < KEPT;
            self.0.retain(|_, (since, _)| fresh(since));
        }
        if self.0.len() < MOST_KEPT {
            self.0.insert(hostname.clone(), (now, found.to_vec()));
        }
    }
}

impl SystemResolver {
    /// On a runtime whose threads are the node's, not a pod's. `timeout` bounds the answer and the
    /// wait for a place together.
    #[must_use]
    pub fn new(runtime: Handle, places: usize, timeout: Duration) -> Self {
        Self {
            runtime,
            places: Arc::new(Semaphore::new(places)),
            timeout,
            kept: Arc::default(),
        }
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, hostname: &Arc<str>) -> Resolving {
        let kept = self.kept.clone();
        let known = lock(&kept).get(hostname, Instant::now());
        if let Some(known) = known {
            return Box::pin(std::future::ready(Ok(known)));
        }
        let (places, after) = (self.places.clone(), self.timeout);
        let hostname = hostname.clone();
        let name = hostname.clone();
        let asking = async move {
            let place = places.acquire_owned().await.map_err(io::Error::other)?;
            // The answer to a question that nobody waits for any more still holds its place: its
            // thread is busy until it comes.
            let asked = tokio::spawn(async move {
                let found = tokio::net::lookup_host((&*name, 0)).await?;
                drop(place);
                Ok::<Vec<IpAddr>, io::Error>(found.map(|at| at.ip().to_canonical()).collect())
            });
            asked.await.map_err(io::Error::other)?
        };
        let answered = self
            .runtime
            .spawn(async move { tokio::time::timeout(after, asking).await });
        Box::pin(async move {
            let refused = |source| ResolveError::Refused {
                hostname: hostname.clone(),
                source,
            };
            let stopped = |error: tokio::task::JoinError| refused(io::Error::other(error));
            let found = answered.await.map_err(stopped)?;
            let found = found.map_err(|_elapsed| ResolveError::Timeout {
                hostname: hostname.clone(),
                after,
            })?;
            let found = found.map_err(refused)?;
            if found.is_empty() {
                return Err(ResolveError::Empty { hostname });
            }
            lock(&kept).put(&hostname, &found, Instant::now());
            Ok(found)
        })
    }
}

fn lock(kept: &Mutex<Kept>) -> std::sync::MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(name: &str, places: usize) -> Result<Vec<IpAddr>, ResolveError> {
        let main = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let handle = main.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let node = std::thread::spawn(move || drop(main.block_on(stopped)));
        let resolver = SystemResolver::new(handle, places, Duration::from_secs(1));
        let worker = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        // The worker's runtime has neither a timer nor threads to lend.
        let found = worker.block_on(resolver.resolve(&name.into()));
        drop(stop);
        node.join().unwrap();
        found
    }

    #[test]
    fn a_name_is_resolved_on_another_runtime() {
        let found = resolve("localhost", 1).unwrap();
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
    }

    #[test]
    fn an_address_is_its_own_name() {
        let found = resolve("192.0.2.7", 1).unwrap();
        assert_eq!(found, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_name_that_cannot_be_is_refused_with_its_name() {
        let error = resolve("not a name", 1).unwrap_err();
        assert_eq!(error.reason(), "name_refused");
        assert!(error.to_string().contains("not a name"), "{error}");
    }

    #[test]
    fn answers_are_kept_for_a_while_and_in_bounds() {
        let (mut kept, now) = (Kept::default(), Instant::now());
        let found = ["192.0.2.7".parse::<IpAddr>().unwrap()];
        kept.put(&"web.example".into(), &found, now);
        assert_eq!(kept.get("web.example", now).as_deref(), Some(&found[..]));
        assert_eq!(kept.get("web.example", now + KEPT), None);
        for number in 0..MOST_KEPT + 1 {
            kept.put(&format!("host-{number}").into(), &found, now);
        }
        assert_eq!(kept.0.len(), MOST_KEPT);
        kept.put(&"late.example".into(), &found, now + KEPT);
        assert_eq!(kept.0.len(), 1, "what is too old makes room");
    }

    #[test]
    fn waiting_is_bounded() {
        let error = resolve("localhost", 0).unwrap_err();
        assert_eq!(error.reason(), "name_timeout");
    }
}
