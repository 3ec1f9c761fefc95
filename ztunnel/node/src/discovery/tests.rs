//! On-demand discovery against a control plane that is a table.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt as _;

use super::*;

/// Finds `10.0.0.1`; does not answer for `10.0.0.9`; everything else is absent.
#[derive(Debug, Default)]
struct Table {
    requests: AtomicUsize,
}

impl ResourceFetcher for Table {
    fn fetch(&self, key: &ResourceKey) -> DiscoveryFuture {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let fetched = match key.to_string().as_str() {
            "/10.0.0.1" => FetchOutcome::Found,
            "/10.0.0.9" => FetchOutcome::Unknown,
            _ => FetchOutcome::Absent,
        };
        Box::pin(std::future::ready(fetched))
    }
}

fn table() -> (Arc<Table>, OnDemandClient) {
    let table = Arc::new(Table::default());
    (table.clone(), OnDemandClient::new(table))
}

fn key(text: &str) -> ResourceKey {
    ResourceKey::at(&"".into(), text.parse().unwrap())
}

fn number(at: u32) -> ResourceKey {
    ResourceKey::at(&"".into(), std::net::Ipv4Addr::from_bits(at).into())
}

#[tokio::test]
async fn only_the_answer_absent_makes_a_resource_absent() {
    let (_, on_demand) = table();
    let limiter = RateLimiter::new(1);
    let mut discovered = Discovered::default();
    for (at, answered) in [("10.0.0.1", true), ("192.0.2.1", true), ("10.0.0.9", false)] {
        let fetched = discovered.fetch(Some(&on_demand), &limiter, key(at)).await;
        assert_eq!(fetched.is_ok(), answered, "{at}");
    }
    assert_eq!(discovered.absent.as_slice(), [key("192.0.2.1")]);
    let error = discovered.fetch(None, &limiter, key("10.0.0.2")).await;
    assert!(error.unwrap_err().to_string().contains("/10.0.0.2"));
}

#[tokio::test]
async fn one_connection_requests_a_resource_only_once() {
    let (table, on_demand) = table();
    let mut discovered = Discovered::default();
    let limiter = RateLimiter::new(1);
    let found = key("10.0.0.1");
    let first = discovered.fetch(Some(&on_demand), &limiter, found.clone());
    assert_eq!(first.await, Ok(()));
    // It was found, but the mesh does not know it: a second request would not help.
    let second = discovered.fetch(Some(&on_demand), &limiter, found).await;
    assert!(second.is_err());
    assert_eq!(table.requests.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_address_that_belongs_only_to_services_is_stored_as_absent() {
    let mesh = |text: &str| {
        let mesh = mesh::local::parse(text).unwrap().into_snapshot();
        mesh.partial()
    };
    let range = r#"services: [{ name: wide, hostname: wide, ranges: ["/10.0.0.0/16"] }]"#;
    let single = r#"services: [{ name: one, hostname: one, vips: ["/10.0.0.1"] }]"#;
    let workload = r#"workloads: [{ uid: w, name: w, workloadIps: ["10.0.0.1"] }]"#;
    let found = key("10.0.0.1");
    for services in [range, single] {
        let (_, on_demand) = table();
        let (mut discovered, limiter) = (Discovered::default(), RateLimiter::new(1));
        let services_only = mesh(services);
        assert!(
            !discovered.found_only_service(None, &found, &services_only),
            "not requested"
        );
        let fetched = discovered.fetch(Some(&on_demand), &limiter, found.clone());
        assert_eq!(fetched.await, Ok(()));
        let both = mesh(&format!("{range}\n{workload}"));
        assert!(!discovered.found_only_service(Some(&on_demand), &found, &both));
        assert!(discovered.absent.is_empty() && !on_demand.is_absent(&found));
        for _ in 0..2 {
            assert!(discovered.found_only_service(Some(&on_demand), &found, &services_only));
        }
        assert_eq!(discovered.absent.as_slice(), std::slice::from_ref(&found));
        assert!(
            on_demand.is_absent(&found),
            "other connections need not request it"
        );
    }
}

#[tokio::test]
async fn an_absent_resource_is_requested_once_and_an_unknown_one_each_time() {
    let (table, on_demand) = table();
    let limiter = RateLimiter::new(1);
    for _ in 0..3 {
        let fetched = on_demand.fetch(&key("192.0.2.1"), &limiter).await;
        assert_eq!(fetched, FetchOutcome::Absent);
    }
    assert_eq!(table.requests.load(Ordering::Relaxed), 1);
    for _ in 0..3 {
        let fetched = on_demand.fetch(&key("10.0.0.9"), &limiter).await;
        assert_eq!(fetched, FetchOutcome::Unknown);
    }
    assert_eq!(table.requests.load(Ordering::Relaxed), 4);
}

#[test]
fn an_absence_expires_and_can_be_renewed() {
    let mut answers = AbsentResources::new();
    let (at, now) = (key("192.0.2.1"), Instant::now());
    answers.insert(&at, now);
    assert!(answers.contains(&at, now + LEASE / 2));
    assert!(!answers.contains(&at, now + LEASE));
    answers.insert(&at, now + LEASE / 2);
    // The first answer expires and leaves the newer one.
    answers.insert(&key("192.0.2.2"), now + LEASE);
    assert!(answers.contains(&at, now + LEASE));
    answers.insert(&key("192.0.2.3"), now + LEASE * 3);
    assert_eq!((answers.until.len(), answers.order.len()), (1, 1));
}

#[test]
fn the_stored_answers_are_bounded() {
    let mut answers = AbsentResources::new();
    let now = Instant::now();
    let many = u32::try_from(ANSWERS_MAX).unwrap() + 1000;
    for at in 0..many {
        answers.insert(&number(at), now);
    }
    assert_eq!(answers.until.len(), ANSWERS_MAX);
    assert_eq!(answers.order.len(), ANSWERS_MAX);
    assert!(!answers.contains(&number(0), now));
    assert!(answers.contains(&number(many - 1), now));
}

#[test]
fn requests_of_a_pod_pass_at_once_then_are_delayed_then_refused() {
    for workers in [1, 2, 4] {
        let limiter = RateLimiter::new(workers);
        let now = Instant::now();
        let delays: Vec<_> = std::iter::from_fn(|| limiter.reserve(now))
            .take(5000)
            .collect();
        let share = usize::try_from(BURST).unwrap() / workers;
        let at_once = delays.iter().filter(|delay| delay.is_zero()).count();
        assert_eq!(at_once, share + 1, "{workers} workers");
        let waiting = usize::try_from(PER_SECOND).unwrap() * 5 / workers;
        assert_eq!(delays.len(), share + waiting + 1, "{workers} workers");
        assert!(delays.iter().all(|delay| *delay <= DELAY_MAX));
        assert_eq!(limiter.reserve(now + DELAY_MAX * 4), Some(Duration::ZERO));
    }
}

#[tokio::test]
async fn connections_do_not_wait_long_for_the_name_of_a_client() {
    #[derive(Debug)]
    struct Silent;
    impl ResourceFetcher for Silent {
        fn fetch(&self, _key: &ResourceKey) -> DiscoveryFuture {
            Box::pin(std::future::pending())
        }
    }
    let on_demand = OnDemandClient::new(Arc::new(Silent));
    let limiter = RateLimiter::new(1);
    let began = Instant::now();
    on_demand
        .fetch_client_name(&key("10.0.0.1"), &limiter)
        .await;
    let waited = began.elapsed();
    assert!(waited >= NAME_TIMEOUT, "{waited:?}");
    let second = key("10.0.0.2");
    let fetching = on_demand.fetch_client_name(&second, &limiter);
    let fetched = fetching.now_or_never();
    assert!(fetched.is_some(), "the second one does not wait");
}
