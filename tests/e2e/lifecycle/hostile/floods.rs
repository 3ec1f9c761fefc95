//! Peers that flood the proxy.

use ztunnel_tests::net::{Family, World};

use super::AttackSetup;
use crate::assertions::HTTP;
use crate::peer::{Kind, Reply, connect, dial, literal};

/// The largest growth of a proxy's memory, in bytes; far below the total size of each flood.
const MEMORY: u64 = 48 << 20;
/// The error code CANCEL (RFC 9113, section 7).
const CANCEL: [u8; 4] = [0, 0, 0, 8];

fn memory(setup: &mut AttackSetup<'_>) -> u64 {
    setup.mesh.proxy("b").rss().unwrap()
}

#[track_caller]
fn assert_memory_bounded(setup: &mut AttackSetup<'_>, before: u64) {
    let after = memory(setup);
    assert!(after < before + MEMORY, "{before} bytes became {after}");
}

#[test]
fn rapid_stream_resets_end_the_connection() {
    let world = World::two_nodes().unwrap();
    let mut setup = AttackSetup::new(&world);
    let before = memory(&mut setup);
    let app = connect(&setup.attacked_pod.at(Family::V4, HTTP).to_string());
    let mut tunnels = setup.tunnels(Family::V4);
    let mut opened = 0_u32;
    while opened < 200_000 {
        let stream = opened * 2 + 1;
        let sent = tunnels
            .request(stream, &app)
            .and_then(|()| tunnels.send(Kind::Reset, 0, stream, &CANCEL));
        if sent.is_err() {
            break;
        }
        opened += 1;
    }
    if opened == 200_000 {
        // The proxy has tolerated the flood, so its memory must not have grown.
        assert_memory_bounded(&mut setup, before);
    }
    drop(tunnels);
    setup.assert_still_serving();
    assert_memory_bounded(&mut setup, before);
}

#[test]
fn an_endless_header_block_ends_the_connection() {
    let world = World::two_nodes().unwrap();
    let mut setup = AttackSetup::new(&world);
    let before = memory(&mut setup);
    let mut tunnels = setup.tunnels(Family::V4);
    tunnels
        .send(Kind::Headers, 0, 1, &connect("10.42.1.10:8080"))
        .unwrap();
    let piece = literal(b"x", &[b'y'; 8000]);
    let mut pieces = 0;
    while pieces < 100_000 && tunnels.send(Kind::Continuation, 0, 1, &piece).is_ok() {
        pieces += 1;
    }
    assert!(pieces < 100_000, "800 MB of headers were taken");
    assert!(matches!(
        tunnels.reply(1),
        Reply::GoAway(1..) | Reply::Closed(_)
    ));
    assert_memory_bounded(&mut setup, before);
    setup.assert_still_serving();
}

#[test]
fn more_streams_than_announced_are_refused() {
    let world = World::two_nodes().unwrap();
    let mut setup = AttackSetup::new(&world);
    let before = memory(&mut setup);
    let app = connect(&setup.attacked_pod.at(Family::V4, HTTP).to_string());
    let mut tunnels = setup.tunnels(Family::V4);
    for index in 0..2000 {
        if tunnels.request(index * 2 + 1, &app).is_err() {
            break;
        }
    }
    let last = tunnels.reply(3999);
    assert!(
        !matches!(last, Reply::Status(200)),
        "stream 2000 was accepted"
    );
    assert_memory_bounded(&mut setup, before);
    setup.assert_still_serving();
}

#[test]
fn idle_connections_do_not_block_others() {
    let world = World::two_nodes().unwrap();
    let mut setup = AttackSetup::new(&world);
    let before = memory(&mut setup);
    let to = setup.hbone(Family::V4);
    let waiting: Vec<_> = setup.attack(|| (0..500).map(|_| dial(to).unwrap()).collect());
    setup.assert_still_serving();
    assert_memory_bounded(&mut setup, before);
    drop(waiting);
}
