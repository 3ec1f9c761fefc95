//! More keys than the kernel has room for fast-path entries: the least recently used entries are
//! evicted, their connections are authorized again, and every connection is correct.

use serde_json::json;
use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::traffic::Kind;

use crate::assertions::{PORT, assert_all_running, call, policy_for, send_request};

/// The capacity for fast-path entries.
const CAPACITY: u16 = 64;
/// The number of keys.
const KEYS: u16 = 200;

#[test]
fn the_least_recently_used_entries_are_evicted() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let [one, other] = topology.clients();
    let mut mesh = topology
        .mesh()
        .settings(|settings| {
            settings
                .capture
                .extra
                .insert("verdicts".to_owned(), json!(CAPACITY));
        })
        .policy(policy_for(other, "not-this-one", "Deny"))
        .start()
        .unwrap();
    let ports = PORT..PORT + KEYS;
    let _servers: Vec<_> = ports
        .clone()
        .map(|port| topology.serve(Kind::Http, port).unwrap())
        .collect();
    for round in 0..3 {
        for port in ports.clone() {
            let to = topology.server().at(Family::BOTH[round % 2], port);
            for _ in 0..2 {
                let sent = send_request(&topology, one, to).unwrap();
                assert_eq!(sent.answer.local, to, "round {round}");
                assert_eq!(sent.end.peer_addr().unwrap(), to, "round {round}");
            }
            if port % 20 == 0 {
                assert!(call(other, to).is_err(), "{to}: round {round}");
            }
        }
    }
    // The last round used IPv4. Without a proxy only connections with an entry succeed.
    mesh.proxy("a").kill().unwrap();
    let has_entry: Vec<bool> = ports
        .map(|port| {
            let to = topology.server().at(Family::V4, port);
            topology.dial_once(one, to).is_ok()
        })
        .collect();
    assert_recent_entries(&has_entry);
    mesh.proxy("a").start().unwrap();
    assert_all_running(&mut mesh);
}

/// Asserts that the entries fit into the capacity and are mostly those of the last keys.
fn assert_recent_entries(has_entry: &[bool]) {
    let count = |part: &[bool]| part.iter().filter(|has_entry| **has_entry).count();
    let (all, of) = (count(has_entry), has_entry.len());
    println!("{all} of {of} keys have an entry");
    assert!(
        all <= usize::from(CAPACITY),
        "more entries than the capacity"
    );
    let (old, new) = has_entry.split_at(usize::from(KEYS - CAPACITY));
    assert!(
        count(new) > 2 * count(old),
        "{} of the last {}, {} of the {} before",
        count(new),
        new.len(),
        count(old),
        old.len()
    );
    assert!(
        count(new) > usize::from(CAPACITY) / 4,
        "too few new keys have an entry"
    );
}
