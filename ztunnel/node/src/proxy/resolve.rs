//! Resolves backends that have a name instead of an address, when a connection needs them.
//!
//! A worker must start no thread, because the thread would stay in a pod's namespace, and a
//! resolver may need one. So resolvers are behind [`Resolve`] and run on the main thread's runtime.
//! Waiting is bounded in time and in number, and one pod cannot take all places.
//!
//! Names are absolute: the search domains of the proxy's own pod do not apply.

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

/// How long an answer is cached. `getaddrinfo(3)` returns no TTL.
const KEPT: Duration = Duration::from_secs(5);

/// The maximum number of cached answers.
const MOST_KEPT: usize = 1024;

/// One pod gets at most this fraction of the places.
const PART: usize = 16;

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolver returned an error.
    #[error("{hostname} cannot be resolved: {source}")]
    Refused {
        /// The name.
        hostname: Arc<str>,
        /// The resolver's error.
        source: io::Error,
    },
    /// The name exists, but has no address.
    #[error("{hostname} resolves to no address")]
    Empty {
        /// The name.
        hostname: Arc<str>,
    },
    /// Too many names of the pod, or of all pods together, are being resolved.
    #[error(
        "{hostname} was not resolved: too many names are being resolved, and none finished within {after:?}"
    )]
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
    /// The reason as one of a closed set of strings, for metrics and logs.
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

/// A pending resolution.
pub type Resolving = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, ResolveError>> + Send>>;

/// Resolves names to addresses.
pub trait Resolve: fmt::Debug + Send + Sync {
    /// Resolves a name on behalf of a pod; the result holds at least one address. The future may be
    /// awaited on any thread and must start no thread there.
    fn resolve(&self, hostname: &Arc<str>, pod: NetnsCookie) -> Resolving;
}

/// Resolves by `getaddrinfo(3)` on the given runtime.
#[derive(Debug)]
pub struct SystemResolver {
    runtime: Handle,
    /// The limit of concurrent resolutions: each needs a thread of the runtime.
    places: Arc<Semaphore>,
    shares: Shares,
    timeout: Duration,
    kept: Arc<Mutex<Kept>>,
}

/// The cached answers.
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

/// The places of each pod.
#[derive(Debug)]
struct Shares {
    places: usize,
    /// The pods that resolve names now; an entry expires when no task waits for a place or holds
    /// one.
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

/// The name in a form for which the system tries no search domain. Addresses are no names. The
/// system resolves `localhost` itself (RFC 6761, section 6.3) and only without a trailing dot.
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
    /// Creates a resolver on a runtime whose threads are in the node's namespace. `timeout` bounds
    /// the resolution and the wait for a place together.
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

/// Waits for a place of the pod and for one of all pods, then resolves the name.
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
    // A resolution holds its places after its caller has given up, because its thread is busy until
    // the system answers.
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
    /// The timeout of a test that gets no place.
    const BRIEFLY: Duration = Duration::from_millis(100);

    /// Runs a test on a worker's thread, whose runtime has no timer and no blocking threads.
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
            // The short timeout is for the pod without a free place; the other pod gets the full
            // one.
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
