//! Backends that have a name instead of an address are resolved when somebody calls them.
//!
//! A worker must start no thread (it stays in a pod's namespace), and a resolver may need one:
//! so whatever resolves is behind [`Resolve`], and runs on the main thread's runtime. Waiting is
//! bounded, in time and in number, and no pod can take the places of all others.
//!
//! A name means itself: the search domains of the proxy's own pod are nobody's who asks here.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use mesh::NetnsCookie;

/// How long an answer counts. `getaddrinfo(3)` does not say for how long it may.
const KEPT: Duration = Duration::from_secs(5);

/// How many answers are kept.
const MOST_KEPT: usize = 1024;

/// One pod has at most this part of the places.
const PART: usize = 16;

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
    /// There was no place to ask from: the pod, or all pods together, wait for too many names.
    #[error("{hostname} was not asked for: no place became free within {after:?}")]
    Busy {
        /// The name.
        hostname: Arc<str>,
        /// The limit.
        after: Duration,
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
            Self::Busy { .. } => "name_busy",
            Self::Timeout { .. } => "name_timeout",
        }
    }
}

/// What names have for an answer.
pub type Resolving = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, ResolveError>> + Send>>;

/// Finds the addresses of a name.
pub trait Resolve: fmt::Debug + Send + Sync {
    /// Asks for a name on behalf of a pod; the answer holds at least one address. It may be awaited
    /// on any thread and must start none there.
    fn resolve(&self, hostname: &Arc<str>, pod: NetnsCookie) -> Resolving;
}

/// Asks the system, as `getaddrinfo(3)` does, on the runtime that it is given.
#[derive(Debug)]
pub struct SystemResolver {
    runtime: Handle,
    /// How many may ask at once: each needs a thread of the runtime's.
    places: Arc<Semaphore>,
    shares: Shares,
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

/// How many places each pod may have.
#[derive(Debug)]
struct Shares {
    places: usize,
    /// Of the pods that ask right now; gone when nobody waits or holds a place.
    pods: Mutex<HashMap<NetnsCookie, Weak<Semaphore>>>,
}

impl Shares {
    fn of(places: usize) -> Self {
        Self {
            places: places.div_ceil(PART),
            pods: Mutex::default(),
        }
    }

    fn share(&self, pod: NetnsCookie) -> Arc<Semaphore> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = pods.get(&pod).and_then(Weak::upgrade) {
            return known;
        }
        pods.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(self.places));
        pods.insert(pod, Arc::downgrade(&share));
        share
    }
}

/// A name as the system is asked for it, so that it tries no search domain. An address is no name,
/// and `localhost` is the system's own (RFC 6761, section 6.3), which knows it only as it is.
fn absolute(hostname: &str) -> Cow<'_, str> {
    let as_it_is =
        hostname.ends_with('.') || hostname == "localhost" || hostname.parse::<IpAddr>().is_ok();
    if as_it_is {
        Cow::Borrowed(hostname)
    } else {
        Cow::Owned(format!("{hostname}."))
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
            shares: Shares::of(places),
            timeout,
            kept: Arc::default(),
        }
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, hostname: &Arc<str>, pod: NetnsCookie) -> Resolving {
        let kept = self.kept.clone();
        let known = lock(&kept).get(hostname, Instant::now());
        if let Some(known) = known {
            return Box::pin(std::future::ready(Ok(known)));
        }
        let (places, share, after) = (self.places.clone(), self.shares.share(pod), self.timeout);
        let hostname = hostname.clone();
        let asking = self
            .runtime
            .spawn(ask(hostname.clone(), (share, places), after));
        Box::pin(async move {
            let refused = |source| ResolveError::Refused {
                hostname: hostname.clone(),
                source,
            };
            let stopped = |error: tokio::task::JoinError| refused(io::Error::other(error));
            let found = asking.await.map_err(stopped)??;
            if found.is_empty() {
                return Err(ResolveError::Empty { hostname });
            }
            lock(&kept).put(&hostname, &found, Instant::now());
            Ok(found)
        })
    }
}

/// Waits for a place of the pod's and one of all, and asks.
async fn ask(
    hostname: Arc<str>,
    (share, places): (Arc<Semaphore>, Arc<Semaphore>),
    after: Duration,
) -> Result<Vec<IpAddr>, ResolveError> {
    let refused = |source| ResolveError::Refused {
        hostname: hostname.clone(),
        source,
    };
    let until = tokio::time::Instant::now() + after;
    let waiting = tokio::time::timeout_at(until, async {
        let own = share.acquire_owned().await.map_err(io::Error::other)?;
        let place = places.acquire_owned().await.map_err(io::Error::other)?;
        Ok((own, place))
    });
    let busy = |_elapsed| ResolveError::Busy {
        hostname: hostname.clone(),
        after,
    };
    let held = waiting.await.map_err(busy)?.map_err(refused)?;
    let name = hostname.clone();
    // The answer to a question that nobody waits for any more still holds its places: its thread is
    // busy until it comes.
    let asked = tokio::spawn(async move {
        let name = absolute(&name);
        let found = tokio::net::lookup_host((&*name, 0)).await?;
        drop(held);
        Ok::<Vec<IpAddr>, io::Error>(found.map(|at| at.ip().to_canonical()).collect())
    });
    let late = |_elapsed| ResolveError::Timeout {
        hostname: hostname.clone(),
        after,
    };
    let answered = tokio::time::timeout_at(until, asked).await.map_err(late)?;
    answered
        .map_err(io::Error::other)
        .and_then(|found| found)
        .map_err(refused)
}

fn lock(kept: &Mutex<Kept>) -> std::sync::MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: NetnsCookie = NetnsCookie(1);
    /// For a place that never becomes free.
    const BRIEFLY: Duration = Duration::from_millis(100);

    /// Runs a test on a worker's thread, whose runtime has neither a timer nor threads to lend.
    fn with_places<T>(places: usize, test: impl AsyncFnOnce(&mut SystemResolver) -> T) -> T {
        let main = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let handle = main.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let node = std::thread::spawn(move || drop(main.block_on(stopped)));
        let mut resolver = SystemResolver::new(handle, places, Duration::from_secs(10));
        let worker = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let outcome = worker.block_on(test(&mut resolver));
        drop(stop);
        node.join().unwrap();
        outcome
    }

    fn resolve(name: &str, places: usize) -> Result<Vec<IpAddr>, ResolveError> {
        with_places(places, async |resolver| {
            resolver.resolve(&name.into(), POD).await
        })
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
        with_places(0, async |resolver| {
            resolver.timeout = BRIEFLY;
            let error = resolver.resolve(&"localhost".into(), POD).await;
            assert_eq!(error.unwrap_err().reason(), "name_busy");
        });
    }

    #[test]
    fn one_pod_does_not_take_the_places_of_another() {
        with_places(32, async |resolver| {
            let share = resolver.shares.share(POD);
            let held: Vec<_> = (0..2).map(|_| share.clone().try_acquire_owned()).collect();
            assert!(held.iter().all(Result::is_ok));
            assert_eq!(share.available_permits(), 0);
            // It has only this long to wait for a place; who has one asks the system in peace.
            let patience = std::mem::replace(&mut resolver.timeout, BRIEFLY);
            let error = resolver.resolve(&"localhost".into(), POD).await;
            assert_eq!(error.unwrap_err().reason(), "name_busy");
            resolver.timeout = patience;
            let other = resolver.resolve(&"localhost".into(), NetnsCookie(2)).await;
            assert!(other.is_ok(), "{other:?}");
        });
    }

    #[test]
    fn shares_are_gone_when_nobody_asks() {
        let shares = Shares::of(128);
        for pod in 0..100 {
            assert_eq!(shares.share(NetnsCookie(pod)).available_permits(), 8);
        }
        assert_eq!(shares.pods.lock().unwrap().len(), 1);
        let held = shares.share(POD);
        let share = shares.share(POD);
        assert!(Arc::ptr_eq(&held, &share));
    }

    #[test]
    fn names_are_asked_for_without_search_domains() {
        for (name, asked) in [
            ("web", "web."),
            ("web.example", "web.example."),
            ("web.example.", "web.example."),
            ("localhost", "localhost"),
            ("192.0.2.7", "192.0.2.7"),
            ("2001:db8::7", "2001:db8::7"),
        ] {
            assert_eq!(absolute(name), asked);
        }
    }
}
