//! More calls than the kernel remembers verdicts for: the ones that were used least recently are
//! judged again, and everything stays right.

use serde_json::json;
use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::traffic::Kind;

use crate::proof::{PORT, about, ask, call, unharmed};

/// How many verdicts the kernel remembers.
const ROOM: u16 = 64;
/// How many calls there are.
const CALLS: u16 = 200;

#[test]
fn the_oldest_verdicts_make_room() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let [one, other] = scene.clients();
    let mut mesh = scene
        .mesh()
        .settings(|settings| {
            settings
                .capture
                .extra
                .insert("verdicts".to_owned(), json!(ROOM));
        })
        .policy(about(other, "not-this-one", "Deny"))
        .start()
        .unwrap();
    let ports = PORT..PORT + CALLS;
    let _servers: Vec<_> = ports
        .clone()
        .map(|port| scene.serve(Kind::Http, port).unwrap())
        .collect();
    for round in 0..3 {
        for port in ports.clone() {
            let to = scene.server().at(Family::BOTH[round % 2], port);
            for _ in 0..2 {
                let asked = ask(&scene, one, to).unwrap();
                assert_eq!(asked.answer.local, to, "round {round}");
                assert_eq!(asked.end.peer_addr().unwrap(), to, "round {round}");
            }
            if port % 20 == 0 {
                assert!(call(other, to).is_err(), "{to}: round {round}");
            }
        }
    }
    // The last round was by IPv4. Without a proxy only what is known connects.
    mesh.proxy("a").kill().unwrap();
    let known: Vec<bool> = ports
        .map(|port| {
            let to = scene.server().at(Family::V4, port);
            scene.knock(one, to).is_ok()
        })
        .collect();
    let count = |part: &[bool]| part.iter().filter(|known| **known).count();
    println!("{} of {} are known", count(&known), known.len());
    assert!(
        count(&known) <= usize::from(ROOM),
        "more than there is room for"
    );
    let (old, new) = known.split_at(usize::from(CALLS - ROOM));
    assert!(
        count(new) > 2 * count(old),
        "{} of the last {}, {} of the {} before",
        count(new),
        new.len(),
        count(old),
        old.len()
    );
    assert!(count(new) > usize::from(ROOM) / 4, "hardly any is known");
    mesh.proxy("a").start().unwrap();
    unharmed(&mut mesh);
}
