//! A rolling upgrade: the proxy of a node is replaced under load, three times, and no request
//! fails. Short connections and those that are kept, in tunnels to and from the node, and between two
//! of its pods: past the proxy, or in tunnels where rules capture.

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
use ztunnel_tests::traffic::{self, End, Kind, Manner};

use crate::scene::{self, HTTP, LIMIT, MARKER};

/// How many requests a connection carries that is kept.
const A_CONNECTION: usize = 100;
/// Clients of each kind on each way.
const CLIENTS: usize = 2;
const ROUNDS: u64 = 3;

/// Where requests go, and how often they may.
struct Way<'world> {
    name: &'static str,
    from: &'world Host,
    to: SocketAddr,
}

/// What becomes of all requests.
struct Load {
    all: u64,
    /// Those that are left with a connection of their own.
    short: AtomicI64,
    /// Those that are left over connections that are kept.
    kept: AtomicI64,
    answered: AtomicU64,
    /// While it lasts, requests go on, however many there were already.
    replacing: AtomicBool,
    stop: AtomicBool,
    failed: Mutex<BTreeMap<String, u64>>,
}

impl Load {
    fn new(short: i64, kept: i64) -> Self {
        Self {
            all: (short + kept).unsigned_abs(),
            short: AtomicI64::new(short),
            kept: AtomicI64::new(kept),
            answered: AtomicU64::new(0),
            replacing: AtomicBool::new(true),
            stop: AtomicBool::new(false),
            failed: Mutex::default(),
        }
    }

    /// Whether one more request is to be made.
    fn next(&self, left: &AtomicI64) -> bool {
        let one_is_left = left.fetch_sub(1, Ordering::Relaxed) > 0;
        let goes_on = one_is_left || self.replacing.load(Ordering::Relaxed);
        goes_on && !self.stop.load(Ordering::Relaxed)
    }

    fn count(&self, kind: &str, way: &Way<'_>, outcome: io::Result<()>) -> bool {
        match outcome {
            Ok(()) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(error) => {
                let what = format!("{kind}, {}: {:?}: {error}", way.name, error.kind());
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                *failed.entry(what).or_default() += 1;
                false
            }
        }
    }

    /// Every request has a connection of its own.
    fn short(&self, way: &Way<'_>) {
        way.from.enter(|| {
            while self.next(&self.short) {
                let answer = traffic::get(way.to, MARKER, LIMIT);
                self.count("short", way, answer.and_then(|answer| right(&answer)));
            }
        });
    }

    /// Connections are kept for some requests.
    fn kept(&self, way: &Way<'_>) {
        way.from.enter(|| {
            let mut open: Option<(End, usize)> = None;
            while self.next(&self.kept) {
                let (mut stream, used) = match open.take() {
                    Some(kept) => kept,
                    None => match End::connect(way.to, Manner::Blocking, LIMIT) {
                        Ok(stream) => (stream, 0),
                        Err(error) => {
                            self.count("kept, connecting", way, Err(error));
                            continue;
                        }
                    },
                };
                let answer = traffic::get_over(&mut stream, MARKER, LIMIT);
                let fine = self.count("kept", way, answer.and_then(|answer| right(&answer)));
                if fine && used + 1 < A_CONNECTION {
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

fn right(answer: &traffic::Answer) -> io::Result<()> {
    if answer.status == 200 && answer.marker == MARKER {
        Ok(())
    } else {
        Err(io::Error::other(format!("a wrong answer: {answer:?}")))
    }
}

/// Replaces the proxy each time another part of the requests is through.
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

/// Replaces the proxy of node `a` by `once` while there are requests, every one of which is answered.
fn no_request_fails(world: &World, (short, kept): (i64, i64), once: impl FnMut() -> ExitStatus) {
    let (here, beside, there) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let _servers = [here, beside, there].map(|pod| pod.serve(Kind::Http, HTTP).unwrap());
    let way = |name, from, to: &Host, family| Way {
        name,
        from,
        to: to.at(family, HTTP),
    };
    let ways = [
        way("out", here, there, Family::V4),
        way("in", there, here, Family::V6),
        way("beside", here, beside, Family::V4),
    ];
    for way in &ways {
        scene::answered(way.from, way.to);
    }
    let load = Load::new(short, kept);
    let began = Instant::now();
    thread::scope(|scope| {
        for way in &ways {
            for _ in 0..CLIENTS {
                scope.spawn(|| load.short(way));
                scope.spawn(|| load.kept(way));
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

fn patient(settings: &mut Settings) {
    settings.log.filter = "info,access=off".to_owned();
    settings.set_deadline("60s");
}

#[test]
fn no_request_of_a_hundred_thousand_fails_while_a_proxy_is_replaced_three_times() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::builder(&world).settings(patient).start().unwrap();
    no_request_fails(&world, (30_000, 70_000), || {
        mesh.proxy("a").replace(2 * LIMIT).unwrap()
    });
    scene::unharmed(&mut mesh);
}

/// Nobody is in charge there, and no process tells the other one anything: the new one serves the pods
/// as soon as it knows the mesh, and the old one goes on until it is asked to end. In a cluster the
/// new one is ready by then; here both share a network namespace, and it gets the port of
/// readiness when the old one has ended.
#[test]
fn no_request_fails_while_a_proxy_by_rules_is_replaced_by_another_one_three_times() {
    let world = World::two_nodes().unwrap();
    for pod in world.nodes().iter().flat_map(|node| &node.pods) {
        Rules::IptablesNft.install(pod).unwrap();
    }
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| {
            patient(settings);
            let by = ("by".to_owned(), json!("rules"));
            settings.capture.extra.extend([by]);
        })
        .start()
        .unwrap();
    let pods = world.node("a").pods.len();
    no_request_fails(&world, (6_000, 14_000), || {
        let proxy = mesh.proxy("a");
        let serves = |proxy: &Proxy<'_>| proxy.log().matches("pod enrolled").count();
        let wanted = serves(proxy) + pods;
        let mut before = proxy.launch_heir().unwrap();
        scene::eventually("the new proxy serves the pods", || serves(proxy) == wanted);
        let status = before.terminate(2 * LIMIT).unwrap();
        proxy.wait_taken_over().unwrap();
        status
    });
    scene::unharmed(&mut mesh);
}
