//! What is on the direct lane does not need the proxy: it goes on while one dies, ends or is
//! replaced, and the next one knows of it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_lanes;
use ztunnel_tests::process::Pause;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{End, Kind};

use crate::proof::{PATIENCE, PORT, about, ask, call, cut, eventually, speak, unharmed};

/// How a proxy leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// As `kill -9` does it.
    Killed,
    /// As it is asked to.
    Terminated,
}

impl Leaving {
    const BOTH: [Self; 2] = [Self::Killed, Self::Terminated];

    fn happens(self, mesh: &mut Mesh<'_>) {
        match self {
            Self::Killed => mesh.proxy("a").kill().unwrap(),
            Self::Terminated => {
                let started = Instant::now();
                mesh.proxy("a").terminate(PATIENCE).unwrap();
                // There is nothing of the direct lane that it had to wait for.
                assert!(started.elapsed() < DEADLINE / 2, "{:?}", started.elapsed());
            }
        }
    }
}

/// How long a proxy that is asked to end waits for what it carries itself.
const DEADLINE: Duration = Duration::from_secs(20);

fn ways(scene: &Scene) -> Vec<SocketAddr> {
    let service = Mesh::service(scene.server());
    let families = Family::BOTH.into_iter();
    families
        .flat_map(|family| [scene.server().at(family, PORT), service.at(family, 80)])
        .collect()
}

fn mesh(scene: &Scene) -> Mesh<'_> {
    scene
        .mesh()
        .settings(move |settings| settings.set_deadline(&format!("{}s", DEADLINE.as_secs())))
        .start()
        .unwrap()
}

/// Waits until the proxy has ended the records of what it carried itself, so that termination
/// has nothing to wait for.
fn settled(scene: &Scene, mesh: &mut Mesh<'_>, open: usize) {
    eventually("what the proxy carried has ended", || {
        let metrics = mesh.proxy("a").metrics().unwrap();
        let labels = [("reporter", "source")];
        let closed = metrics.sum("istio_tcp_connections_closed_total", &labels);
        (closed + open as f64 == scene.knocks() as f64).then_some(())
    });
}

on_lanes!(an_open_connection_goes_on: direct, joined, auto);
fn an_open_connection_goes_on(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let mut mesh = mesh(&scene);
    let listener = scene.listen(scene.server(), PORT).unwrap();
    let pairs: Vec<_> = ways(&scene)
        .into_iter()
        .map(|to| scene.connect(to, &listener).unwrap())
        .collect();
    pairs.iter().for_each(speak);
    settled(&scene, &mut mesh, pairs.len());
    for leaving in Leaving::BOTH {
        leaving.happens(&mut mesh);
        for _ in 0..100 {
            pairs.iter().for_each(speak);
        }
        mesh.proxy("a").start().unwrap();
        for _ in 0..100 {
            pairs.iter().for_each(speak);
        }
    }
    unharmed(&mut mesh);
}

/// How long there is no proxy.
const AWAY: Duration = Duration::from_secs(3);

on_lanes!(a_transfer_does_not_stop_while_the_proxy_is_replaced: direct, joined);
/// Data flows all the time, not only before and after.
fn a_transfer_does_not_stop_while_the_proxy_is_replaced(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let mut mesh = mesh(&scene);
    let _echo = scene.serve(Kind::Echo, PORT).unwrap();
    let end = scene
        .dial(scene.client(), scene.server().at(Family::V4, PORT))
        .unwrap();
    let longest = thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let talking = scope.spawn(move || longest_answer(end, &stopped));
        for leaving in Leaving::BOTH {
            leaving.happens(&mut mesh);
            thread::sleep(AWAY);
            mesh.proxy("a").start().unwrap();
            thread::sleep(Duration::from_millis(300));
        }
        drop(stop);
        talking.join().unwrap()
    });
    // Both threads may be late; without a proxy nothing would come before it is back.
    assert!(longest < AWAY.mul_f64(0.8), "{longest:?} without a byte");
    unharmed(&mut mesh);
}

/// Speaks with an echo until told to stop; returns the longest time that an answer took.
fn longest_answer(mut end: End, stopped: &std::sync::mpsc::Receiver<()>) -> Duration {
    let mut longest = Duration::ZERO;
    let mut heard = [0; 1000];
    while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
        let started = Instant::now();
        end.write_all(&[5; 1000]).unwrap();
        end.read_exact(&mut heard).unwrap();
        longest = longest.max(started.elapsed());
    }
    longest
}

on_lanes!(what_is_known_connects_while_no_proxy_runs_and_nothing_else: direct, joined);
fn what_is_known_connects_while_no_proxy_runs_and_nothing_else(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let mut mesh = mesh(&scene);
    let (outside, neighbour) = (scene.world().outside(), scene.servers()[1]);
    let _servers = [scene.server(), outside, neighbour]
        .map(|host| host.serve_as(Kind::Http, PORT, lane.manner()).unwrap());
    let _other_port = scene.serve(Kind::Http, 9000).unwrap();
    let mut known = ways(&scene);
    known.extend(Family::BOTH.map(|family| outside.at(family, PORT)));
    for to in &known {
        scene.get(*to, "known").unwrap();
    }
    let inbound: Vec<_> = Family::BOTH
        .into_iter()
        .map(|family| scene.server().at(family, PORT))
        .collect();
    for to in &inbound {
        call(outside, *to).unwrap();
    }
    settled(&scene, &mut mesh, 0);
    for leaving in Leaving::BOTH {
        leaving.happens(&mut mesh);
        for to in &known {
            let asked = ask(&scene, scene.client(), *to).unwrap();
            assert!(asked.direct, "{to}");
        }
        for to in &inbound {
            call(outside, *to).unwrap();
        }
        for family in Family::BOTH {
            for (from, to) in [
                (scene.client(), scene.server().at(family, 9000)),
                (scene.client(), neighbour.at(family, PORT)),
                (scene.client(), Mesh::service(neighbour).at(family, 80)),
                (scene.clients()[1], scene.server().at(family, PORT)),
                (scene.client(), outside.at(family, 1)),
            ] {
                let outcome = scene.knock(from, to);
                let refused = outcome.map_err(|error| error.kind());
                assert_eq!(
                    refused.err(),
                    Some(ErrorKind::ConnectionRefused),
                    "{} to {to}",
                    from.name
                );
            }
            let outcome = call(outside, neighbour.at(family, PORT));
            assert!(outcome.is_err(), "{outcome:?}");
        }
        mesh.proxy("a").start().unwrap();
        // Nothing of it has to be judged again.
        for to in &known {
            let asked = ask(&scene, scene.client(), *to).unwrap();
            assert!(asked.direct, "{to}: judged again");
        }
    }
    unharmed(&mut mesh);
}

on_lanes!(the_next_proxy_reports_the_end_of_what_began_under_another: direct, joined);
fn the_next_proxy_reports_the_end_of_what_began_under_another(lane: Lane) {
    const BYTES: usize = 700_001;
    let scene = Scene::set(lane).unwrap();
    let mut mesh = mesh(&scene);
    let _echo = scene.serve(Kind::Echo, PORT).unwrap();
    for (family, leaving) in Family::BOTH.into_iter().zip(Leaving::BOTH) {
        let to = scene.server().at(family, PORT);
        let mut before = scene.dial(scene.client(), to).unwrap();
        let mut chat = |bytes: usize| {
            before.write_all(&vec![1; bytes]).unwrap();
            before.read_exact(&mut vec![0; bytes]).unwrap();
        };
        chat(BYTES);
        leaving.happens(&mut mesh);
        chat(BYTES);
        // One that began and ended while nobody was there.
        let mut meanwhile = scene.knock(scene.client(), to).unwrap();
        meanwhile.write_all(&[2; 1000]).unwrap();
        meanwhile.read_exact(&mut [0; 1000]).unwrap();
        drop(meanwhile);
        mesh.proxy("a").start().unwrap();
        chat(BYTES);
        before.shutdown(std::net::Shutdown::Both).unwrap();
        drop(before);
        let wanted = 3.0 * BYTES as f64 + 1000.0;
        for reporter in ["source", "destination"] {
            let labels = [("reporter", reporter)];
            let now = || {
                let metrics = mesh.proxy("a").metrics().unwrap();
                ["connections_closed", "received_bytes", "sent_bytes"]
                    .map(|name| metrics.sum(&format!("istio_tcp_{name}_total"), &labels))
            };
            let mut now = now;
            let reached = ztunnel_tests::eventually(Duration::from_secs(10), || {
                now() == [2.0, wanted, wanted]
            });
            assert!(reached, "{leaving:?}, {reporter}: {:?}", now());
        }
    }
    unharmed(&mut mesh);
}

on_lanes!(a_new_proxy_ends_what_its_settings_do_not_allow: direct, joined);
fn a_new_proxy_ends_what_its_settings_do_not_allow(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let mut mesh = mesh(&scene);
    let listener = scene.listen(scene.server(), PORT).unwrap();
    let [one, other] = scene.clients();
    let open = |from| -> Vec<(End, End)> {
        let connect = |to| scene.connect_from(from, to, &listener).unwrap();
        ways(&scene).into_iter().map(connect).collect()
    };
    let mut concerned = open(one);
    let unconcerned = open(other);
    mesh.proxy("a").kill().unwrap();
    mesh.change(|settings| settings.policies.push(about(one, "no-longer", "Deny")))
        .unwrap();
    concerned.iter().for_each(speak);
    mesh.proxy("a").start().unwrap();
    for pair in &mut concerned {
        cut(pair, "denied by the settings of the new proxy");
    }
    for to in ways(&scene) {
        let outcome = scene.knock(one, to).and_then(|mut end| end.read(&mut [0]));
        assert!(outcome.is_err(), "{to}: {outcome:?}");
    }
    unconcerned.iter().for_each(speak);
    unharmed(&mut mesh);
}

/// A proxy that hangs is not dead, and nobody takes its place. What is known does not need it.
#[test]
fn what_is_known_connects_while_the_proxy_hangs() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let mut mesh = mesh(&scene);
    let _http = scene.serve(Kind::Http, PORT).unwrap();
    for to in ways(&scene) {
        scene.get(to, "known").unwrap();
    }
    mesh.proxy("a").pause(Pause::Stop).unwrap();
    for to in ways(&scene) {
        for _ in 0..20 {
            assert!(ask(&scene, scene.client(), to).unwrap().direct, "{to}");
        }
    }
    mesh.proxy("a").pause(Pause::GoOn).unwrap();
    settled(&scene, &mut mesh, 0);
    unharmed(&mut mesh);
}
