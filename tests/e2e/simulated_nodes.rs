//! The simulated nodes without a proxy, which all other tests use.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use ztunnel_tests::net::{Family, World};
use ztunnel_tests::sniff::Sniffer;
use ztunnel_tests::traffic::{self, IoMode, Kind, Stream, tune};

const TIMEOUT: Duration = Duration::from_secs(5);

#[test]
fn the_sniffer_captures_plaintext_between_two_nodes() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 1));
    let running = server.serve(Kind::Http, 8080).unwrap();
    for family in Family::BOTH {
        let sniffer = Sniffer::between(world.node("a"), "b", b"plaintext").unwrap();
        let answer = client
            .enter(|| traffic::get(server.at(family, 8080), "plaintext", TIMEOUT))
            .unwrap();
        assert_eq!(answer.peer.ip(), client.address(family));
        assert_eq!(answer.local, server.at(family, 8080));
        assert_eq!(answer.marker, "plaintext");
        assert_eq!(answer.peer, answer.client_local);
        std::thread::sleep(ztunnel_tests::sniff::SETTLE);
        let seen = sniffer.finish().unwrap();
        assert!(
            seen.marker_packets >= 2,
            "expected the request and its answer: {seen:?}"
        );
    }
    assert_eq!(running.accepted(), 2);
}

#[test]
fn every_pod_reaches_the_host_outside_and_the_other_pods() {
    let world = World::two_nodes().unwrap();
    let hosts = [world.outside(), world.pod("a", 1), world.pod("b", 0)];
    for server in hosts {
        let running = server.serve(Kind::Http, 0).unwrap();
        for family in Family::BOTH {
            let to = server.at(family, running.port());
            let client = world.pod("a", 0);
            let answer = client.enter(|| traffic::get(to, "x", TIMEOUT)).unwrap();
            assert_eq!(answer.peer.ip(), client.address(family), "{to}");
        }
    }
}

#[test]
fn routes_choose_the_congestion_control() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let far = server.serve(Kind::Echo, 0).unwrap();
    let near = client.serve(Kind::Echo, 0).unwrap();
    for family in Family::BOTH {
        let loopback = match family {
            Family::V4 => "127.0.0.1",
            Family::V6 => "::1",
        };
        let addresses = [
            server.at(family, far.port()),
            client.at(family, near.port()),
            std::net::SocketAddr::new(loopback.parse().unwrap(), near.port()),
        ];
        for to in addresses {
            let stream = client.enter(|| TcpStream::connect(to)).unwrap();
            assert_eq!(tune::congestion(&stream).unwrap(), "cubic", "{to}");
        }
    }
}

#[test]
fn a_dropped_world_leaves_nothing_behind() {
    let world = World::two_nodes().unwrap();
    let prefix = world.prefix().to_owned();
    let directory = world.directory().to_owned();
    assert!(directory.exists());
    assert!(has_resources(&prefix));
    drop(world);
    assert!(!directory.exists());
    assert!(!has_resources(&prefix));
}

fn has_resources(prefix: &str) -> bool {
    let mark = format!("{prefix}-");
    let names = fs::read_dir(Path::new("/run/netns")).unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    names
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with(&mark))
        || mounts.contains(&mark)
}

#[test]
fn an_echo_returns_the_sent_bytes() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let echo = server.serve(Kind::Echo, 0).unwrap();
    for family in Family::BOTH {
        let to = server.at(family, echo.port());
        let stream = client
            .enter(|| Stream::connect(to, IoMode::Blocking, TIMEOUT))
            .unwrap();
        traffic::exchange(&stream, 8 << 20).unwrap();
    }
}

#[test]
fn servers_can_reset_connections_and_stop_reading() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let reset = server.serve(Kind::Reset, 0).unwrap();
    let no_read = server.serve(Kind::NoRead, 0).unwrap();
    let mut stream = client
        .enter(|| TcpStream::connect(server.at(Family::V4, reset.port())))
        .unwrap();
    stream.write_all(b"x").unwrap();
    let error = stream.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    let mut stream = client
        .enter(|| TcpStream::connect(server.at(Family::V4, no_read.port())))
        .unwrap();
    stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let error = (0..10_000)
        .find_map(|_| stream.write_all(&[0; 65536]).err())
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}
