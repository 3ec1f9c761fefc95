//! The store with an issuer that counts its calls, delays its responses and fails on demand.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::super::testing::{Leaf, TestCa, identity};
use super::super::{Fault, Issued};
use super::*;

/// An issuer under the test's control.
struct Fake {
    ca: TestCa,
    calls: AtomicUsize,
    /// The requested identities, in order.
    requested: Mutex<Vec<Identity>>,
    /// The lifetime of leaves.
    ttl: Duration,
    /// The delay of a response.
    delay: Duration,
    /// Whether a call fails, by its number from 0.
    fails: fn(usize) -> bool,
}

impl Fake {
    fn new() -> Self {
        Self {
            ca: TestCa::new(),
            calls: AtomicUsize::new(0),
            requested: Mutex::default(),
            ttl: Duration::from_secs(3600),
            delay: Duration::from_millis(10),
            fails: |_| false,
        }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Issuer for Fake {
    fn issue<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send + 'a>> {
        Box::pin(async move {
            let call = self.calls.fetch_add(1, Ordering::SeqCst);
            self.requested.lock().unwrap().push(identity.clone());
            tokio::time::sleep(self.delay).await;
            if (self.fails)(call) {
                let why = format!("call {call}");
                return Err(IssueError::Unavailable {
                    issuer: "fake".to_owned(),
                    why,
                });
            }
            let mut leaf = Leaf::of(identity);
            leaf.not_after = SystemTime::now() + self.ttl;
            Ok(self.ca.issue(&leaf))
        })
    }
}

fn store(fake: Fake) -> (Arc<Fake>, Arc<Store>) {
    let fake = Arc::new(fake);
    let config = Config {
        retry_min: Duration::from_millis(20),
        retry_max: Duration::from_millis(100),
        attempt_timeout: Duration::from_millis(300),
        ..Config::default()
    };
    let store = Store::new(fake.clone(), config, Handle::current());
    (fake, store)
}

/// Waits until the condition is true. The store's tasks may be late on a busy machine.
async fn until(condition: impl AsyncFn() -> bool) {
    let condition = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), condition)
        .await
        .expect("the condition is not true within 10 s");
}

#[tokio::test]
async fn concurrent_callers_share_one_request() {
    let (fake, store) = store(Fake::new());
    let a = identity("a");
    let gets = (0..50).map(|_| store.get(&a));
    let got = futures::future::join_all(gets).await;
    let serials: Vec<_> = got
        .iter()
        .map(|got| got.as_ref().unwrap().serial())
        .collect();
    assert!(serials.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(fake.calls(), 1);
    store.get(&identity("b")).await.unwrap();
    assert_eq!(fake.calls(), 2);
}

#[tokio::test]
async fn a_valid_certificate_is_returned_without_waiting() {
    let (_, store) = store(Fake::new());
    let a = identity("a");
    store.get(&a).await.unwrap();
    let mut get = Box::pin(store.get(&a));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(get.as_mut().poll(&mut cx).is_ready());
}

#[tokio::test]
async fn callers_may_run_on_another_runtime() {
    let (_, store) = store(Fake::new());
    let other = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async { store.get(&identity("a")).await.unwrap().identity().clone() })
    });
    while !other.is_finished() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(other.join().unwrap(), identity("a"));
}

#[tokio::test]
async fn a_certificate_is_renewed_at_half_of_its_lifetime() {
    // At least two seconds, because certificates store times in seconds.
    let (fake, store) = store(Fake {
        ttl: Duration::from_millis(2900),
        ..Fake::new()
    });
    store.prefetch(&identity("a"));
    let first = store.get(&identity("a")).await.unwrap();
    let begin = Instant::now();
    loop {
        let now = store.get(&identity("a")).await.unwrap();
        if now.serial() != first.serial() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The end of validity is truncated to whole seconds: half of 1.9 to 2.9 s, less a tenth. A busy
    // machine may be late, but not by the other half.
    let after = begin.elapsed();
    assert!(after >= Duration::from_millis(800), "{after:?}");
    assert!(SystemTime::now() < first.not_after(), "{after:?}");
    assert_eq!(fake.calls(), 2);
    assert_eq!(first.identity(), &identity("a"));
}

#[tokio::test]
async fn the_old_certificate_stays_in_use_while_the_issuer_is_unavailable() {
    let fails = |call| (1..4).contains(&call);
    let (fake, store) = store(Fake {
        ttl: Duration::from_millis(2900),
        fails,
        ..Fake::new()
    });
    store.prefetch(&identity("a"));
    let first = store.get(&identity("a")).await.unwrap();
    let is_new = async || store.get(&identity("a")).await.unwrap().serial() != first.serial();
    until(is_new).await;
    assert_eq!(fake.calls(), 5);
}

#[tokio::test]
async fn an_expired_certificate_is_never_returned() {
    let (_, store) = store(Fake {
        ttl: Duration::from_millis(1500),
        fails: |call| call > 0,
        ..Fake::new()
    });
    store.prefetch(&identity("a"));
    let first = store.get(&identity("a")).await.unwrap();
    let error = loop {
        let start = SystemTime::now();
        match store.get(&identity("a")).await {
            Ok(credentials) => assert!(start < credentials.not_after()),
            Err(error) => break error,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(SystemTime::now() >= first.not_after());
    assert_eq!(error.reason(), "ca_unavailable");
    assert_eq!(store.inventory()[0].state, CertificateState::Expired);
}

#[tokio::test]
async fn a_failed_first_request_fails_all_callers_and_is_retried() {
    let (fake, store) = store(Fake {
        fails: |call| call == 0,
        ..Fake::new()
    });
    let a = identity("a");
    for failed in futures::future::join_all((0..3).map(|_| store.get(&a))).await {
        let error = failed.unwrap_err();
        assert_eq!(
            (error.reason(), error.fault()),
            ("ca_unavailable", Fault::Mesh)
        );
        let text = error.to_string();
        assert!(
            text.contains(a.as_str()) && text.contains("call 0"),
            "{text}"
        );
    }
    assert_eq!(
        store.inventory()[0].state,
        CertificateState::Unavailable {
            reason: "the certificate authority fake cannot be reached: call 0".to_owned()
        }
    );
    store.get(&a).await.unwrap();
    assert_eq!(fake.calls(), 2);
}

#[tokio::test]
async fn callers_do_not_raise_the_request_rate_of_a_failing_issuer() {
    let (fake, store) = store(Fake {
        fails: |_| true,
        delay: Duration::ZERO,
        ..Fake::new()
    });
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(300) {
        store.get(&identity("a")).await.unwrap_err();
    }
    assert!(
        fake.calls() <= 16,
        "{} calls, at least 20 ms apart",
        fake.calls()
    );
}

#[tokio::test]
async fn a_request_to_an_issuer_that_hangs_times_out() {
    let (_, store) = store(Fake {
        delay: Duration::from_secs(60),
        ..Fake::new()
    });
    let error = store.get(&identity("a")).await.unwrap_err();
    assert_eq!(error.reason(), "ca_unavailable");
    assert!(
        error.to_string().contains("no response within 300ms"),
        "{error}"
    );
}

#[tokio::test]
async fn prefetch_starts_the_renewal_and_forget_stops_it() {
    let (fake, store) = store(Fake {
        ttl: Duration::from_millis(2900),
        ..Fake::new()
    });
    store.prefetch(&identity("a"));
    let is_initializing = || store.inventory()[0].state == CertificateState::Initializing;
    assert!(is_initializing());
    until(async || !is_initializing()).await;
    let summaries = store.inventory();
    assert_eq!(
        (summaries.len(), &summaries[0].state),
        (1, &CertificateState::Available)
    );
    let summary = &summaries[0];
    assert!(!summary.serial.is_empty() && summary.not_after > summary.not_before);
    let kept = store.get(&identity("a")).await.unwrap();
    store.forget(&identity("a"));
    assert!(store.inventory().is_empty());
    tokio::time::sleep(Duration::from_millis(1600)).await;
    assert_eq!(fake.calls(), 1);
    assert_eq!(kept.identity(), &identity("a"));
}

/// A connection of a pod that was just removed gets its certificate.
#[tokio::test]
async fn a_certificate_requested_after_forget_is_not_renewed() {
    // It is renewed after half of its lifetime, truncated to whole seconds, less a tenth: 1.7 to
    // 2.5 s.
    let (fake, store) = store(Fake {
        ttl: Duration::from_millis(4900),
        ..Fake::new()
    });
    let a = identity("a");
    store.prefetch(&a);
    store.get(&a).await.unwrap();
    store.forget(&a);
    let late = store.get(&a).await.unwrap();
    assert_eq!((fake.calls(), store.inventory().len()), (2, 1));
    until(async || store.inventory().is_empty()).await;
    assert_eq!(fake.calls(), 2);
    // The certificate stays in use while it is valid.
    assert_eq!(store.get(&a).await.unwrap().serial(), late.serial());
    // A pod with this service account is added again.
    store.prefetch(&a);
    until(async || fake.calls() > 3).await;
    assert_eq!((fake.calls(), store.inventory().len()), (4, 1));
}

#[tokio::test]
async fn failed_requests_for_a_removed_pod_are_not_retried_for_ever() {
    let (fake, store) = store(Fake {
        fails: |_| true,
        ..Fake::new()
    });
    store.get(&identity("gone")).await.unwrap_err();
    store.prefetch(&identity("here"));
    let times = |name| {
        let requested = fake.requested.lock().unwrap();
        requested.iter().filter(|it| **it == identity(name)).count()
    };
    // `gone` was requested first, so its next attempt would be earlier.
    until(async || times("here") > 3 && store.inventory().len() == 1).await;
    // The caller may start to wait just after the attempt has begun: then there is one more
    // attempt.
    assert!((1..=2).contains(&times("gone")), "{}", times("gone"));
}

#[tokio::test]
async fn requests_are_limited_and_those_that_a_connection_waits_for_go_first() {
    let fake = Arc::new(Fake::new());
    let config = Config {
        concurrency: 2,
        ..Config::default()
    };
    let store = Store::new(fake.clone(), config, Handle::current());
    let names = ["a", "b", "c", "d", "e"].map(identity);
    for identity in &names {
        store.prefetch(identity);
    }
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(fake.calls(), 2);
    // One identity without a prefetch, and one whose prefetch waits for a permit.
    let (unexpected, last) = (identity("x"), &names[4]);
    let (x, e) = tokio::join!(store.get(&unexpected), store.get(last));
    assert!(x.is_ok() && e.is_ok());
    while store.inventory().iter().any(|c| c.serial.is_empty()) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut requested: Vec<_> = fake.requested.lock().unwrap().clone();
    requested[..2].sort();
    requested[2..4].sort();
    requested[4..].sort();
    assert_eq!(requested, ["a", "b", "e", "x", "c", "d"].map(identity));
}

#[tokio::test]
async fn renew_all_replaces_all_certificates_and_the_old_ones_serve_until_then() {
    let (fake, store) = store(Fake::new());
    let all = ["a", "b"].map(identity);
    let mut old = Vec::new();
    for identity in &all {
        old.push(store.get(identity).await.unwrap());
    }
    store.renew_all();
    let is_old = async |at: usize| {
        let now = store.get(&all[at]).await.unwrap();
        now.serial() == old[at].serial()
    };
    // A valid certificate is returned without waiting, so none was renewed in the meantime.
    assert!(is_old(0).await && is_old(1).await);
    until(async || !is_old(0).await && !is_old(1).await).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(fake.calls(), 4);
}

#[tokio::test]
async fn forget_fails_the_callers_that_wait() {
    let (_, store) = store(Fake {
        delay: Duration::from_secs(60),
        ..Fake::new()
    });
    let a = identity("a");
    let (error, ()) = tokio::join!(store.get(&a), async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        store.forget(&a);
    });
    assert_eq!(error.unwrap_err().reason(), "ca_given_up");
}

#[tokio::test]
async fn a_certificate_of_another_identity_is_refused() {
    struct Wrong(TestCa);
    impl Issuer for Wrong {
        fn issue<'a>(
            &'a self,
            _identity: &'a Identity,
        ) -> Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send + 'a>> {
            Box::pin(async { Ok(self.0.issue(&Leaf::of(&identity("b")))) })
        }
    }
    let issuer = Arc::new(Wrong(TestCa::new()));
    let store = Store::new(issuer, Config::default(), Handle::current());
    let error = store.get(&identity("a")).await.unwrap_err();
    assert_eq!(error.reason(), "ca_unusable");
    assert!(
        error.to_string().contains("/sa/b instead of spiffe"),
        "{error}"
    );
}

#[test]
fn renewal_is_due_at_half_of_the_remaining_lifetime_or_up_to_a_tenth_earlier() {
    let now = SystemTime::now();
    let day = Duration::from_secs(86_400);
    assert_eq!(renew_after(now + day, now, 0.0), day / 2);
    assert_eq!(renew_after(now + day, now, 0.1), day.mul_f64(0.45));
    assert_eq!(renew_after(now, now + day, 0.0), Duration::ZERO);
    for _ in 0..1000 {
        assert!((0.0..0.1).contains(&jitter()));
    }
}
