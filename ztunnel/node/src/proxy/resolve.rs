//! Resolves backends that have a name instead of an address, when a connection needs them.
//!
//! A worker must start no thread, because the thread would stay in a pod's namespace, and a
//! resolver may need one. So resolvers implement [`Resolve`] and run on the main thread's runtime.
//! The lookups are limited in time and in number, and one pod cannot take all permits.
//!
//! Names are absolute: the search domains of the proxy's own pod do not apply.
//!
//! The system's `getaddrinfo(3)` looks names up: it follows changes of `/etc/resolv.conf` and the
//! name services that the machine is configured with.

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
const CACHE_TTL: Duration = Duration::from_secs(5);

/// The maximum number of cached answers.
const MAX_CACHED: usize = 1024;

/// One pod gets at most one permit in this many.
const POD_SHARE: usize = 16;

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolver returned an error.
    #[error("cannot resolve {hostname}: {source}")]
    Refused {
        /// The name.
        hostname: Arc<str>,
        /// The resolver's error.
        source: io::Error,
    },
    /// The name exists but has no address.
    #[error("{hostname} resolves to no address")]
    Empty {
        /// The name.
        hostname: Arc<str>,
    },
    /// Too many names of the pod, or of all pods together, are being resolved.
    #[error(
        "cannot resolve {hostname}: too many lookups of this pod or of this node are in progress, and no place became free within {after:?}"
    )]
    Busy {
        /// The name.
        hostname: Arc<str>,
        /// The limit.
        after: Duration,
    },
    /// The resolver did not answer.
    #[error("cannot resolve {hostname}: no answer within {after:?}")]
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
    /// The limit of concurrent lookups: each needs a thread of the runtime.
    permits: Arc<Semaphore>,
    pod_permits: PodPermits,
    timeout: Duration,
    cache: Arc<Mutex<Cache>>,
}

/// The cached answers.
#[derive(Debug, Default)]
struct Cache(HashMap<Arc<str>, Answer>);

#[derive(Debug)]
struct Answer {
    received: Instant,
    addresses: Vec<IpAddr>,
}

impl Answer {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.received) < CACHE_TTL
    }
}

impl Cache {
    fn get(&self, hostname: &str, now: Instant) -> Option<Vec<IpAddr>> {
        let answer = self.0.get(hostname)?;
        answer.is_fresh(now).then(|| answer.addresses.clone())
    }

    fn put(&mut self, hostname: &Arc<str>, addresses: &[IpAddr], now: Instant) {
        if self.0.len() >= MAX_CACHED {
            self.0.retain(|_, answer| answer.is_fresh(now));
        }
        if self.0.len() < MAX_CACHED {
            let answer = Answer {
                received: now,
                addresses: addresses.to_vec(),
            };
            self.0.insert(hostname.clone(), answer);
        }
    }
}

/// The permits of each pod.
#[derive(Debug)]
struct PodPermits {
    /// The number of permits of one pod.
    limit: usize,
    /// The pods that resolve names now; an entry expires when no task waits for a permit or holds
    /// one.
    pods: Mutex<HashMap<NetnsCookie, Weak<Semaphore>>>,
}

impl PodPermits {
    /// The shares of `permits` permits of all pods together.
    fn share_of(permits: usize) -> Self {
        Self {
            limit: permits.div_ceil(POD_SHARE),
            pods: Mutex::default(),
        }
    }

    fn of(&self, pod: NetnsCookie) -> Arc<Semaphore> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(permits) = pods.get(&pod).and_then(Weak::upgrade) {
            return permits;
        }
        pods.retain(|_, permits| permits.strong_count() > 0);
        let permits = Arc::new(Semaphore::new(self.limit));
        pods.insert(pod, Arc::downgrade(&permits));
        permits
    }
}

/// The name in a form for which the system tries no search domain. Addresses are not names. The
/// system resolves `localhost` itself (RFC 6761, section 6.3) and only without a trailing dot.
fn absolute_name(hostname: &str) -> Cow<'_, str> {
    let is_absolute =
        hostname.ends_with('.') || hostname == "localhost" || hostname.parse::<IpAddr>().is_ok();
    if is_absolute {
        Cow::Borrowed(hostname)
    } else {
        Cow::Owned(format!("{hostname}."))
    }
}

impl SystemResolver {
    /// Creates a resolver on a runtime whose threads are in the node's namespace. `permits` is the
    /// maximum number of concurrent lookups; `timeout` bounds a lookup and the wait for a permit
    /// together.
    #[must_use]
    pub fn new(runtime: Handle, permits: usize, timeout: Duration) -> Self {
        Self {
            runtime,
            permits: Arc::new(Semaphore::new(permits)),
            pod_permits: PodPermits::share_of(permits),
            timeout,
            cache: Arc::default(),
        }
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, hostname: &Arc<str>, pod: NetnsCookie) -> Resolving {
        let cache = self.cache.clone();
        let cached = lock(&cache).get(hostname, Instant::now());
        if let Some(addresses) = cached {
            return Box::pin(std::future::ready(Ok(addresses)));
        }
        let lookup = Lookup {
            hostname: hostname.clone(),
            pod_permits: self.pod_permits.of(pod),
            permits: self.permits.clone(),
            timeout: self.timeout,
        };
        let hostname = hostname.clone();
        let lookup = self.runtime.spawn(lookup.run());
        Box::pin(async move {
            let aborted = |error: tokio::task::JoinError| ResolveError::Refused {
                hostname: hostname.clone(),
                source: io::Error::other(error),
            };
            let addresses = lookup.await.map_err(aborted)??;
            if addresses.is_empty() {
                return Err(ResolveError::Empty { hostname });
            }
            lock(&cache).put(&hostname, &addresses, Instant::now());
            Ok(addresses)
        })
    }
}

/// The lookup of one name for a pod.
struct Lookup {
    hostname: Arc<str>,
    /// The permits of the pod.
    pod_permits: Arc<Semaphore>,
    /// The permits of all pods together.
    permits: Arc<Semaphore>,
    timeout: Duration,
}

impl Lookup {
    /// Waits for a permit of the pod and for one of all pods, then resolves the name.
    async fn run(self) -> Result<Vec<IpAddr>, ResolveError> {
        let (hostname, after) = (self.hostname, self.timeout);
        let refused = |source| ResolveError::Refused {
            hostname: hostname.clone(),
            source,
        };
        let deadline = tokio::time::Instant::now() + after;
        let (pod_permits, permits) = (self.pod_permits, self.permits);
        let waiting = tokio::time::timeout_at(deadline, async {
            let of_pod = pod_permits.acquire_owned().await;
            let of_all = permits.acquire_owned().await;
            Ok((
                of_pod.map_err(io::Error::other)?,
                of_all.map_err(io::Error::other)?,
            ))
        });
        let busy = |_elapsed| ResolveError::Busy {
            hostname: hostname.clone(),
            after,
        };
        let held = waiting.await.map_err(busy)?.map_err(refused)?;
        let name = hostname.clone();
        // A lookup holds its permits after its caller has given up, because its thread is busy
        // until the system answers.
        let lookup = tokio::spawn(async move {
            let name = absolute_name(&name);
            let found = tokio::net::lookup_host((&*name, 0)).await?;
            drop(held);
            Ok::<Vec<IpAddr>, io::Error>(found.map(|at| at.ip().to_canonical()).collect())
        });
        let late = |_elapsed| ResolveError::Timeout {
            hostname: hostname.clone(),
            after,
        };
        let answer = tokio::time::timeout_at(deadline, lookup)
            .await
            .map_err(late)?;
        answer
            .map_err(io::Error::other)
            .and_then(|addresses| addresses)
            .map_err(refused)
    }
}

fn lock(cache: &Mutex<Cache>) -> std::sync::MutexGuard<'_, Cache> {
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: NetnsCookie = NetnsCookie(1);
    /// The timeout of a test that gets no permit.
    const SHORT_TIMEOUT: Duration = Duration::from_millis(100);

    /// Runs a test on a worker's thread, whose runtime has no timer and no blocking threads.
    fn with_permits<T>(permits: usize, test: impl AsyncFnOnce(&mut SystemResolver) -> T) -> T {
        let main = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let handle = main.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let node = std::thread::spawn(move || drop(main.block_on(stopped)));
        let mut resolver = SystemResolver::new(handle, permits, Duration::from_secs(10));
        let worker = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let outcome = worker.block_on(test(&mut resolver));
        drop(stop);
        node.join().unwrap();
        outcome
    }

    fn resolve(name: &str, permits: usize) -> Result<Vec<IpAddr>, ResolveError> {
        with_permits(permits, async |resolver| {
            resolver.resolve(&name.into(), POD).await
        })
    }

    #[test]
    fn a_name_is_resolved_on_another_runtime() {
        let found = resolve("localhost", 1).unwrap();
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
    }

    #[test]
    fn an_address_resolves_to_itself() {
        let found = resolve("192.0.2.7", 1).unwrap();
        assert_eq!(found, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn an_invalid_name_is_refused_with_the_name_in_the_error() {
        let error = resolve("not a name", 1).unwrap_err();
        assert_eq!(error.reason(), "name_refused");
        assert!(error.to_string().contains("not a name"), "{error}");
    }

    #[test]
    fn answers_are_cached_for_a_limited_time_and_in_limited_number() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let found = ["192.0.2.7".parse::<IpAddr>().unwrap()];
        cache.put(&"web.example".into(), &found, now);
        assert_eq!(cache.get("web.example", now).as_deref(), Some(&found[..]));
        assert_eq!(cache.get("web.example", now + CACHE_TTL), None);
        for number in 0..MAX_CACHED + 1 {
            cache.put(&format!("host-{number}").into(), &found, now);
        }
        assert_eq!(cache.0.len(), MAX_CACHED);
        cache.put(&"late.example".into(), &found, now + CACHE_TTL);
        assert_eq!(cache.0.len(), 1, "expired answers are removed");
    }

    #[test]
    fn the_wait_for_a_permit_is_limited() {
        with_permits(0, async |resolver| {
            resolver.timeout = SHORT_TIMEOUT;
            let error = resolver.resolve(&"localhost".into(), POD).await;
            assert_eq!(error.unwrap_err().reason(), "name_busy");
        });
    }

    #[test]
    fn one_pod_cannot_take_the_permits_of_another() {
        with_permits(32, async |resolver| {
            let permits = resolver.pod_permits.of(POD);
            let held: Vec<_> = (0..2)
                .map(|_| permits.clone().try_acquire_owned())
                .collect();
            assert!(held.iter().all(Result::is_ok));
            assert_eq!(permits.available_permits(), 0);
            // The short timeout is for the pod without a permit; the other pod gets the full one.
            let timeout = std::mem::replace(&mut resolver.timeout, SHORT_TIMEOUT);
            let error = resolver.resolve(&"localhost".into(), POD).await;
            assert_eq!(error.unwrap_err().reason(), "name_busy");
            resolver.timeout = timeout;
            let other = resolver.resolve(&"localhost".into(), NetnsCookie(2)).await;
            assert!(other.is_ok(), "{other:?}");
        });
    }

    #[test]
    fn the_permits_of_idle_pods_are_removed() {
        let shares = PodPermits::share_of(128);
        for pod in 0..100 {
            assert_eq!(shares.of(NetnsCookie(pod)).available_permits(), 8);
        }
        assert_eq!(shares.pods.lock().unwrap().len(), 1);
        let held = shares.of(POD);
        let share = shares.of(POD);
        assert!(Arc::ptr_eq(&held, &share));
    }

    #[test]
    fn names_are_resolved_without_search_domains() {
        for (name, expected) in [
            ("web", "web."),
            ("web.example", "web.example."),
            ("web.example.", "web.example."),
            ("localhost", "localhost"),
            ("192.0.2.7", "192.0.2.7"),
            ("2001:db8::7", "2001:db8::7"),
        ] {
            assert_eq!(absolute_name(name), expected);
        }
    }
}
