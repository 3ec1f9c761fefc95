//! Peers that send more than anybody could want.

use ztunnel_tests::net::{Family, World};

use super::Stage;
use crate::peer::{Kind, Reply, connect, dial, literal};
use crate::scene::HTTP;

/// What a flood may cost a proxy, bytes. Far below what the floods here would cost if all they
/// send was kept.
const MEMORY: u64 = 48 << 20;
/// The code of a stream that its client no longer wants (RFC 9113, section 7).
const CANCEL: [u8; 4] = [0, 0, 0, 8];

fn memory(stage: &mut Stage<'_>) -> u64 {
    stage.mesh.proxy("b").rss().unwrap()
}

#[track_caller]
fn bounded(stage: &mut Stage<'_>, before: u64) {
    let after = memory(stage);
    assert!(after < before + MEMORY, "{before} bytes became {after}");
}

#[test]
fn streams_that_are_reset_at_once_end_the_connection() {
    let world = World::two_nodes().unwrap();
    let mut stage = Stage::set(&world);
    let before = memory(&mut stage);
    let app = connect(&stage.victim.at(Family::V4, HTTP).to_string());
    let mut tunnels = stage.tunnels(Family::V4);
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
        // It was borne; then it must not have cost anything.
        bounded(&mut stage, before);
    }
    drop(tunnels);
    stage.stands();
    bounded(&mut stage, before);
}

#[test]
fn a_block_of_headers_that_never_ends_is_cut_off() {
    let world = World::two_nodes().unwrap();
    let mut stage = Stage::set(&world);
    let before = memory(&mut stage);
    let mut tunnels = stage.tunnels(Family::V4);
    tunnels.send(Kind::Headers, 0, 1, &connect("10.42.1.10:8080")).unwrap();
    let piece = literal(b"x", &[b'y'; 8000]);
    let mut pieces = 0;
    while pieces < 100_000 && tunnels.send(Kind::Continuation, 0, 1, &piece).is_ok() {
        pieces += 1;
    }
    assert!(pieces < 100_000, "800 MB of headers were taken");
    assert!(matches!(tunnels.reply(1), Reply::GoAway(1..) | Reply::Closed(_)));
    bounded(&mut stage, before);
    stage.stands();
}

#[test]
fn more_streams_than_announced_are_refused() {
    let world = World::two_nodes().unwrap();
    let mut stage = Stage::set(&world);
    let before = memory(&mut stage);
    let app = connect(&stage.victim.at(Family::V4, HTTP).to_string());
    let mut tunnels = stage.tunnels(Family::V4);
    for index in 0..2000 {
        if tunnels.request(index * 2 + 1, &app).is_err() {
            break;
        }
    }
    let last = tunnels.reply(3999);
    assert!(!matches!(last, Reply::Status(200)), "stream 2000 was accepted");
    bounded(&mut stage, before);
    stage.stands();
}

#[test]
fn connections_that_only_wait_keep_nobody_out() {
    let world = World::two_nodes().unwrap();
    let mut stage = Stage::set(&world);
    let before = memory(&mut stage);
    let to = stage.hbone(Family::V4);
    let waiting: Vec<_> =
        stage.attack(|| (0..500).map(|_| dial(to).unwrap()).collect());
    stage.stands();
    bounded(&mut stage, before);
    drop(waiting);
}
