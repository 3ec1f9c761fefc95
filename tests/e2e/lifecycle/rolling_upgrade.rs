//! A rolling upgrade: the proxy of a node is replaced three times under load, and no request fails.
//! Requests use short and long connections, in tunnels from and to the node, and between two pods
//! of the node on the fast path, or in tunnels with rules.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use ztunnel_tests::net::{Family, Host, Rules, World};
use ztunnel_tests::proxy::{Mesh, Proxy, Settings};
use ztunnel_tests::traffic::{self, IoMode, Kind, Stream};

use crate::assertions::{self, HTTP, LIMIT, MARKER};

/// The number of requests on a long connection.
const REQUESTS_PER_CONNECTION: usize = 100;
/// The number of clients of each kind on each route.
const CLIENTS: usize = 2;
const ROUNDS: u64 = 3;

/// The source and destination of requests, and their remaining number.
struct Route<'world> {
    name: &'static str,
    from: &'world Host,
    to: SocketAddr,
}

/// The results of all requests.
struct Load {
    all: u64,
    /// Remaining requests on connections of their own.
    new_connections: AtomicI64,
    /// Remaining requests on long connections.
    long_connections: AtomicI64,
    answered: AtomicU64,
    /// While set, requests continue beyond their number.
    replacing: AtomicBool,
    stop: AtomicBool,
    failed: Mutex<BTreeMap<String, u64>>,
}

impl Load {
    fn new(new_connections: i64, long_connections: i64) -> Self {
        Self {
            all: (new_connections + long_connections).unsigned_abs(),
            new_connections: AtomicI64::new(new_connections),
            long_connections: AtomicI64::new(long_connections),
            answered: AtomicU64::new(0),
            replacing: AtomicBool::new(true),
            stop: AtomicBool::new(false),
            failed: Mutex::default(),
        }
    }

    /// Whether to send another request.
    fn next(&self, left: &AtomicI64) -> bool {
        let one_is_left = left.fetch_sub(1, Ordering::Relaxed) > 0;
        let goes_on = one_is_left || self.replacing.load(Ordering::Relaxed);
        goes_on && !self.stop.load(Ordering::Relaxed)
    }

    fn count(&self, kind: &str, route: &Route<'_>, outcome: io::Result<()>) -> bool {
        match outcome {
            Ok(()) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(error) => {
                let what = format!("{kind}, {}: {:?}: {error}", route.name, error.kind());
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                *failed.entry(what).or_default() += 1;
                false
            }
        }
    }

    /// Sends each request on a new connection.
    fn new_connections(&self, route: &Route<'_>) {
        route.from.enter(|| {
            while self.next(&self.new_connections) {
                let answer = traffic::get(route.to, MARKER, LIMIT);
                self.count(
                    "short",
                    route,
                    answer.and_then(|answer| check_answer(&answer)),
                );
            }
        });
    }

    /// Sends several requests on each connection.
    fn long_connections(&self, route: &Route<'_>) {
        route.from.enter(|| {
            let mut open: Option<(Stream, usize)> = None;
            while self.next(&self.long_connections) {
                let (mut stream, used) = match open.take() {
                    Some(connection) => connection,
                    None => match Stream::connect(route.to, IoMode::Blocking, LIMIT) {
                        Ok(stream) => (stream, 0),
                        Err(error) => {
                            self.count("kept, connecting", route, Err(error));
                            continue;
                        }
                    },
                };
                let answer = traffic::get_over(&mut stream, MARKER, LIMIT);
                let fine = self.count(
                    "kept",
                    route,
                    answer.and_then(|answer| check_answer(&answer)),
                );
                if fine && used + 1 < REQUESTS_PER_CONNECTION {
                    open = Some((stream, used + 1));
                }
            }
        });
    }

    fn done(&self) -> u64 {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        self.answered.load(Ordering::Relaxed) + failed.values().sum::<u64>()
    }
}

fn check_answer(answer: &traffic::Answer) -> io::Result<()> {
    if answer.status == 200 && answer.marker == MARKER {
        Ok(())
    } else {
        Err(io::Error::other(format!("a wrong answer: {answer:?}")))
    }
}

/// Replaces the proxy each time another part of the requests has been sent.
fn replace(load: &Load, mut once: impl FnMut() -> ExitStatus) {
    for round in 1..=ROUNDS {
        let due = load.all * round / (ROUNDS + 2);
        while load.done() < due {
            thread::sleep(Duration::from_millis(5));
        }
        let began = Instant::now();
        let status = once();
        println!("round {round}: replaced in {:?}", began.elapsed());
        assert!(status.success(), "round {round}: {status}");
    }
}

/// Replaces the proxy of node `a` with `once` under load, and asserts that every request is
/// answered.
fn assert_no_request_fails(
    world: &World,
    (new_connections, long_connections): (i64, i64),
    once: impl FnMut() -> ExitStatus,
) {
    let (local, neighbour, remote) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let _servers = [local, neighbour, remote].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    let route = |name, from, to: &Host, family| Route {
        name,
        from,
        to: to.at(family, HTTP),
    };
    let routes = [
        route("out", local, remote, Family::V4),
        route("in", remote, local, Family::V6),
        route("beside", local, neighbour, Family::V4),
    ];
    for route in &routes {
        assertions::expect_answer(route.from, route.to);
    }
    let load = Load::new(new_connections, long_connections);
    let began = Instant::now();
    thread::scope(|scope| {
        for route in &routes {
            for _ in 0..CLIENTS {
                scope.spawn(|| load.new_connections(route));
                scope.spawn(|| load.long_connections(route));
            }
        }
        let replaced = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            replace(&load, once);
        }));
        if let Err(panic) = replaced {
            load.stop.store(true, Ordering::Relaxed);
            std::panic::resume_unwind(panic);
        }
        load.replacing.store(false, Ordering::Relaxed);
        println!("{} requests until then", load.done());
    });
    let answered = load.answered.load(Ordering::Relaxed);
    let failed = load.failed.lock().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{answered} answered, failed: {failed:?}, in {:?}",
        began.elapsed()
    );
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(answered >= load.all, "{answered} of {}", load.all);
}

fn set_long_deadline(settings: &mut Settings) {
    settings.log.filter = "info,access=off".to_owned();
    settings.set_deadline("60s");
}

#[test]
fn none_of_a_hundred_thousand_requests_fails_during_three_upgrades() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::builder(&world)
        .settings(set_long_deadline)
        .start()
        .unwrap();
    assert_no_request_fails(&world, (30_000, 70_000), || {
        mesh.proxy("a").replace(2 * LIMIT).unwrap()
    });
    assertions::assert_all_running(&mut mesh);
}

/// With rules there is no active proxy and no handover: the new proxy serves the pods as soon as it
/// has the mesh, and the old one serves until it gets SIGTERM. In a cluster the new proxy is ready
/// by then; here both share a network namespace, and the new one gets the readiness port when the
/// old one has ended.
#[test]
fn no_request_fails_during_three_upgrades_with_rules() {
    let world = World::two_nodes().unwrap();
    for pod in world.nodes().iter().flat_map(|node| &node.pods) {
        Rules::IptablesNft.install(pod).unwrap();
    }
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| {
            set_long_deadline(settings);
            let by = ("by".to_owned(), json!("rules"));
            settings.capture.extra.extend([by]);
        })
        .start()
        .unwrap();
    let pods = world.node("a").pods.len();
    assert_no_request_fails(&world, (6_000, 14_000), || {
        let proxy = mesh.proxy("a");
        let serves = |proxy: &Proxy<'_>| proxy.log().matches("pod enrolled").count();
        let wanted = serves(proxy) + pods;
        let mut before = proxy.launch_standby().unwrap();
        assertions::eventually("the new proxy serves the pods", || serves(proxy) == wanted);
        let status = before.terminate(2 * LIMIT).unwrap();
        proxy.wait_for_takeover().unwrap();
        status
    });
    assertions::assert_all_running(&mut mesh);
}
