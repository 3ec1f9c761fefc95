//! A rolling upgrade: the proxy of a node is replaced under load, three times, and no request
//! fails. Short connections and those that are kept, in tunnels to and from the node, and past the
//! proxy between two of its pods.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{self, End, Kind, Manner};

use crate::scene::{self, HTTP, LIMIT, MARKER};

/// Requests with a connection of their own.
const SHORT: i64 = 30_000;
/// Requests over connections that are kept.
const KEPT: i64 = 70_000;
/// How many of them one connection carries.
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
    short: AtomicI64,
    kept: AtomicI64,
    answered: AtomicU64,
    stop: AtomicBool,
    failed: Mutex<BTreeMap<String, u64>>,
}

impl Load {
    fn new() -> Self {
        Self {
            short: AtomicI64::new(SHORT),
            kept: AtomicI64::new(KEPT),
            answered: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            failed: Mutex::default(),
        }
    }

    /// Whether one more request is to be made.
    fn next(&self, left: &AtomicI64) -> bool {
        !self.stop.load(Ordering::Relaxed) && left.fetch_sub(1, Ordering::Relaxed) > 0
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

/// Replaces the proxy each time another quarter of the requests is through.
fn replace(mesh: &mut Mesh<'_>, load: &Load) {
    let all = (SHORT + KEPT).unsigned_abs();
    for round in 1..=ROUNDS {
        let due = all * round / (ROUNDS + 2);
        while load.done() < due {
            thread::sleep(Duration::from_millis(5));
        }
        let began = Instant::now();
        let status = mesh.proxy("a").replace(2 * LIMIT).unwrap();
        println!("round {round}: replaced in {:?}", began.elapsed());
        assert!(status.success(), "round {round}: {status}");
    }
}

#[test]
fn no_request_of_a_hundred_thousand_fails_while_a_proxy_is_replaced_three_times() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::builder(&world)
        .settings(move |settings| {
            settings.log.filter = "info,access=off".to_owned();
            settings.set_deadline("60s");
        })
        .start()
        .unwrap();
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
        way("direct", here, beside, Family::V4),
    ];
    for way in &ways {
        scene::answered(way.from, way.to);
    }
    let load = Load::new();
    let began = Instant::now();
    thread::scope(|scope| {
        for way in &ways {
            for _ in 0..CLIENTS {
                scope.spawn(|| load.short(way));
                scope.spawn(|| load.kept(way));
            }
        }
        let replaced = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            replace(&mut mesh, &load);
        }));
        if let Err(panic) = replaced {
            load.stop.store(true, Ordering::Relaxed);
            std::panic::resume_unwind(panic);
        }
        let left = (SHORT + KEPT).unsigned_abs() - load.done();
        assert!(left > 0, "no request was left when the replacing was over");
        println!("{left} requests left after the last round");
    });
    let answered = load.answered.load(Ordering::Relaxed);
    let failed = load.failed.lock().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{answered} answered, failed: {failed:?}, in {:?}",
        began.elapsed()
    );
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(answered, (SHORT + KEPT).unsigned_abs());
    scene::unharmed(&mut mesh);
}
