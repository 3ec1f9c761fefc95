//! After a proxy is killed, its pods stay captured and their connections are refused, never sent in
//! plaintext. The next proxy takes over the pinned programs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::sniff::Sniffer;
use ztunnel_tests::traffic::Kind;

use crate::assertions::{
    self, HTTP, LIMIT, MARKER, call, expect_answer, is_refused, wait_for_answer,
};

/// Every pin below a directory with its inode, which differs for a new pin.
fn pins(directory: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                left.push(entry.path());
            } else {
                found.insert(entry.path().display().to_string(), metadata.ino());
            }
        }
    }
    found
}

#[test]
fn connections_are_refused_after_a_kill_until_the_next_proxy_takes_over() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let _echo = client.serve(Kind::Http, HTTP).unwrap();
    let pinned = mesh.proxy("a").settings.capture.bpf_directory.clone();
    let before = pins(&pinned);
    assert!(
        before.keys().any(|path| path.contains("links")),
        "{before:?}"
    );
    expect_answer(client, server.at(Family::V4, HTTP));

    let sniffer = Sniffer::between(world.node("a"), "b", MARKER.as_bytes()).unwrap();
    mesh.proxy("a").kill().unwrap();
    for family in Family::BOTH {
        for to in [
            server.at(family, HTTP),
            Mesh::service(server).at(family, 80),
            world.pod("a", 1).at(family, HTTP),
            world.outside().at(family, HTTP),
        ] {
            let outcome = call(client, to);
            assert!(is_refused(&outcome), "{to}: {outcome:?}");
        }
        // Inbound connections are refused, in plaintext and in tunnels.
        for port in [HTTP, 15006, 15008] {
            let outcome = call(world.outside(), client.at(family, port));
            assert!(is_refused(&outcome), "port {port}: {outcome:?}");
        }
        assert!(call(server, client.at(family, HTTP)).is_err());
    }
    thread::sleep(ztunnel_tests::sniff::SETTLE);
    let seen = sniffer.finish().unwrap();
    assert_eq!(
        seen.marker_packets, 0,
        "the marker left the node in plaintext"
    );
    assert_eq!(pins(&pinned), before);

    mesh.proxy("a").start().unwrap();
    let sniffer = Sniffer::between(world.node("a"), "b", MARKER.as_bytes()).unwrap();
    for family in Family::BOTH {
        let answer = wait_for_answer(client, server.at(family, HTTP));
        assert_eq!(answer.peer.ip().to_canonical(), client.address(family));
        wait_for_answer(server, client.at(family, HTTP));
        wait_for_answer(client, Mesh::service(server).at(family, 80));
    }
    thread::sleep(ztunnel_tests::sniff::SETTLE);
    let seen = sniffer.finish().unwrap();
    assert!(seen.packets > 0 && seen.marker_packets == 0, "{seen:?}");
    assert_eq!(pins(&pinned), before, "the new proxy has replaced pins");
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn open_connections_end_when_their_proxy_is_killed() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _echo = server.serve(Kind::Echo, 9000).unwrap();
    for node in ["a", "b"] {
        let mut stream = client
            .enter(|| TcpStream::connect(server.at(Family::V4, 9000)))
            .unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        mesh.proxy(node).kill().unwrap();
        // The kernel closes the sockets of a killed process, in an orderly way if no data was
        // unread. A running proxy resets its clients.
        match (node, stream.read(&mut [0; 5])) {
            ("a", Ok(0)) => {}
            (_, Err(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            (_, other) => {
                panic!("after the proxy of node {node} was killed, the client saw {other:?}")
            }
        }
        mesh.proxy(node).start().unwrap();
    }
}

#[test]
fn no_plaintext_leaves_while_the_proxy_is_killed_five_times_under_load() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let server = world.pod("b", 0);
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let sniffer = Sniffer::between(world.node("a"), "b", MARKER.as_bytes()).unwrap();
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for (client, family) in [0, 1]
            .into_iter()
            .flat_map(|pod| Family::BOTH.map(|family| (world.pod("a", pod), family)))
        {
            let (stop, answers) = (&stop, &answers);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // Errors are allowed while the proxy is down; each answer must be correct.
                    if let Ok(answer) = call(client, server.at(family, HTTP)) {
                        assert_eq!(answer.peer.ip().to_canonical(), client.address(family));
                        assert_eq!(answer.marker, MARKER);
                        answers.fetch_add(1, Ordering::Relaxed);
                    } else {
                        thread::sleep(std::time::Duration::from_millis(2));
                    }
                }
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..5 {
                let node = ["a", "b"][round % 2];
                let wanted = answers.load(Ordering::Relaxed) + 20;
                assertions::eventually("twenty answers", || {
                    answers.load(Ordering::Relaxed) >= wanted
                });
                mesh.proxy(node).kill().unwrap();
                mesh.proxy(node).start().unwrap();
            }
            let wanted = answers.load(Ordering::Relaxed) + 20;
            assertions::eventually("answers at the end", || {
                answers.load(Ordering::Relaxed) >= wanted
            });
        }));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
    for client in [0, 1].map(|pod| world.pod("a", pod)) {
        for family in Family::BOTH {
            wait_for_answer(client, server.at(family, HTTP));
        }
    }
    let seen = sniffer.finish().unwrap();
    assert_eq!(
        seen.marker_packets, 0,
        "the marker crossed the link in plaintext"
    );
    assertions::assert_all_running(&mut mesh);
}
