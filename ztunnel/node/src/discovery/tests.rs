//! Asking, against a control plane that is a table.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt as _;

use super::*;

/// Knows `10.0.0.1`; says nothing about `10.0.0.9`; the rest is not in its mesh.
#[derive(Debug, Default)]
struct Table {
    asked: AtomicUsize,
}

impl Ask for Table {
    fn ask(&self, key: &DemandKey) -> DiscoveryFuture {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let fetched = match key.to_string().as_str() {
            "/10.0.0.1" => Fetched::Found,
            "/10.0.0.9" => Fetched::Unknown,
            _ => Fetched::Absent,
        };
        Box::pin(std::future::ready(fetched))
    }
}

fn table() -> (Arc<Table>, OnDemandClient) {
    let table = Arc::new(Table::default());
    (table.clone(), OnDemandClient::new(table))
}

fn key(text: &str) -> DemandKey {
    DemandKey::at(&"".into(), text.parse().unwrap())
}

fn number(at: u32) -> DemandKey {
    DemandKey::at(&"".into(), std::net::Ipv4Addr::from_bits(at).into())
}

#[tokio::test]
async fn only_an_answer_that_it_is_not_there_counts_as_absent() {
    let (_, on_demand) = table();
    let allowance = RateLimiter::new(1);
    let mut discovered = Discovered::default();
    let asked = |discovered: &'static str| key(discovered);
    for (at, answer) in [("10.0.0.1", true), ("192.0.2.1", true), ("10.0.0.9", false)] {
        let told = discovered
            .ask(Some(&on_demand), &allowance, asked(at))
            .await;
        assert_eq!(told.is_ok(), answer, "{at}");
    }
    assert_eq!(discovered.absent.as_slice(), [key("192.0.2.1")]);
    let error = discovered.ask(None, &allowance, key("10.0.0.2")).await;
    assert!(error.unwrap_err().to_string().contains("/10.0.0.2"));
}

#[tokio::test]
async fn one_connection_does_not_ask_twice_for_the_same() {
    let (table, on_demand) = table();
    let mut discovered = Discovered::default();
    let allowance = RateLimiter::new(1);
    let found = key("10.0.0.1");
    let first = discovered.ask(Some(&on_demand), &allowance, found.clone());
    assert_eq!(first.await, Ok(()));
    // It was found, and the mesh still does not know it: no third view will.
    let second = discovered.ask(Some(&on_demand), &allowance, found).await;
    assert!(second.is_err());
    assert_eq!(table.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_service_that_was_found_says_that_nobody_of_the_mesh_is_there() {
    let mesh = |text: &str| {
        let mesh = mesh::local::parse(text).unwrap().into_snapshot();
        mesh.known_in_part()
    };
    let range = r#"services: [{ name: wide, hostname: wide, ranges: ["/10.0.0.0/16"] }]"#;
    let single = r#"services: [{ name: one, hostname: one, vips: ["/10.0.0.1"] }]"#;
    let workload = r#"workloads: [{ uid: w, name: w, workloadIps: ["10.0.0.1"] }]"#;
    let found = key("10.0.0.1");
    for services in [range, single] {
        let (_, on_demand) = table();
        let (mut discovered, allowance) = (Discovered::default(), RateLimiter::new(1));
        let services_only = mesh(services);
        assert!(
            !discovered.knows(None, &found, &services_only),
            "not asked for"
        );
        let asked = discovered.ask(Some(&on_demand), &allowance, found.clone());
        assert_eq!(asked.await, Ok(()));
        let both = mesh(&format!("{range}\n{workload}"));
        assert!(!discovered.knows(Some(&on_demand), &found, &both));
        assert!(discovered.absent.is_empty() && !on_demand.is_absent(&found));
        for _ in 0..2 {
            assert!(discovered.knows(Some(&on_demand), &found, &services_only));
        }
        assert_eq!(discovered.absent.as_slice(), std::slice::from_ref(&found));
        assert!(on_demand.is_absent(&found), "the next one need not ask");
    }
}

#[tokio::test]
async fn what_is_absent_is_asked_for_once_by_all_and_what_is_unknown_each_time() {
    let (table, on_demand) = table();
    let allowance = RateLimiter::new(1);
    for _ in 0..3 {
        let fetched = on_demand.ask(&key("192.0.2.1"), &allowance).await;
        assert_eq!(fetched, Fetched::Absent);
    }
    assert_eq!(table.asked.load(Ordering::Relaxed), 1);
    for _ in 0..3 {
        let fetched = on_demand.ask(&key("10.0.0.9"), &allowance).await;
        assert_eq!(fetched, Fetched::Unknown);
    }
    assert_eq!(table.asked.load(Ordering::Relaxed), 4);
}

#[test]
fn an_absence_ends_and_can_be_renewed() {
    let mut answers = Answers::new();
    let (at, now) = (key("192.0.2.1"), Instant::now());
    answers.note(&at, now);
    assert!(answers.is_absent(&at, now + LEASE / 2));
    assert!(!answers.is_absent(&at, now + LEASE));
    answers.note(&at, now + LEASE / 2);
    // What was noted first runs out, and takes nothing with it.
    answers.note(&key("192.0.2.2"), now + LEASE);
    assert!(answers.is_absent(&at, now + LEASE));
    answers.note(&key("192.0.2.3"), now + LEASE * 3);
    assert_eq!((answers.until.len(), answers.order.len()), (1, 1));
}

#[test]
fn the_answers_that_are_kept_are_bounded() {
    let mut answers = Answers::new();
    let now = Instant::now();
    let many = u32::try_from(ANSWERS_MAX).unwrap() + 1000;
    for at in 0..many {
        answers.note(&number(at), now);
    }
    assert_eq!(answers.until.len(), ANSWERS_MAX);
    assert_eq!(answers.order.len(), ANSWERS_MAX);
    assert!(!answers.is_absent(&number(0), now));
    assert!(answers.is_absent(&number(many - 1), now));
}

#[test]
fn a_pod_asks_at_once_then_in_turn_and_then_is_refused() {
    for workers in [1, 2, 4] {
        let allowance = RateLimiter::new(workers);
        let now = Instant::now();
        let turns: Vec<_> = std::iter::from_fn(|| allowance.take(now))
            .take(5000)
            .collect();
        let share = usize::try_from(BURST).unwrap() / workers;
        let at_once = turns.iter().filter(|turn| turn.is_zero()).count();
        assert_eq!(at_once, share + 1, "{workers} workers");
        let waiting = usize::try_from(PER_SECOND).unwrap() * 5 / workers;
        assert_eq!(turns.len(), share + waiting + 1, "{workers} workers");
        assert!(turns.iter().all(|turn| *turn <= TURN_MAX));
        assert_eq!(allowance.take(now + TURN_MAX * 4), Some(Duration::ZERO));
    }
}

#[tokio::test]
async fn nobody_waits_long_for_the_name_of_a_client() {
    #[derive(Debug)]
    struct Silent;
    impl Ask for Silent {
        fn ask(&self, _key: &DemandKey) -> DiscoveryFuture {
            Box::pin(std::future::pending())
        }
    }
    let on_demand = OnDemandClient::new(Arc::new(Silent));
    let allowance = RateLimiter::new(1);
    let began = Instant::now();
    on_demand.ask_for_name(&key("10.0.0.1"), &allowance).await;
    let waited = began.elapsed();
    assert!(waited >= NAME_PATIENCE, "{waited:?}");
    let second = key("10.0.0.2");
    let asking = on_demand.ask_for_name(&second, &allowance);
    let told = asking.now_or_never();
    assert!(told.is_some(), "the second one does not wait");
}
