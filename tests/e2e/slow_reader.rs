//! A reader that does not read stops its writer; the proxies do not fill up in between.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::time::Duration;

use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_lanes;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::End;

use crate::ends::{PATIENCE, listen};

/// What is written at most. A way without back-pressure would take all of it.
const OFFERED: usize = 512 << 20;
/// More than all windows and socket buffers of the way together.
const STALLS_BEFORE: usize = 128 << 20;
/// What a proxy may grow by for one such connection: the stream's window (2 MiB), what waits to
/// be sent (1 MiB) and reading buffers, with room for the allocator.
const GROWTH: u64 = 24 << 20;
/// No byte was taken for so long: the writer is stopped.
const STILL: Duration = Duration::from_secs(2);

/// Writes until nothing more is taken; returns how much was.
fn write_until_it_stalls(mut stream: &End) -> usize {
    stream.set_write_timeout(Some(STILL)).unwrap();
    let mut written = 0;
    let mut chunk = vec![0; 64 << 10];
    while written < OFFERED {
        for (at, byte) in chunk.iter_mut().enumerate() {
            *byte = pattern(written + at);
        }
        match stream.write(&chunk) {
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("after {written} bytes: {error}"),
        }
    }
    written
}

/// The byte at a place of the stream; 251 divides no buffer's size.
fn pattern(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap()
}

fn drain(mut stream: &End) -> usize {
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            return total;
        }
        for byte in &buffer[..count] {
            assert_eq!(*byte, pattern(total));
            total += 1;
        }
    }
}

// Not where an operator has had ends joined unseen: there the writer never stops, which is one of
// the reasons why `auto` asks the kernel first.
on_lanes!(a_reader_that_does_not_read_stops_its_writer: tunnel, direct, auto);
fn a_reader_that_does_not_read_stops_its_writer(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let mut mesh = scene.mesh().start().unwrap();
    let listener = listen(scene.server(), 8080);
    for (family, client_writes) in [
        (Family::V4, true),
        (Family::V4, false),
        (Family::V6, true),
        (Family::V6, false),
    ] {
        let case = format!("{family:?}, the client writes: {client_writes}");
        let to = scene.server().at(family, 8080);
        let (client, server) = scene.connect(to, &listener).unwrap();
        let (writer, reader) = if client_writes {
            (client, server)
        } else {
            (server, client)
        };
        let rss = |mesh: &mut Mesh<'_>| ["a", "b"].map(|node| mesh.proxy(node).rss().unwrap());
        let before = rss(&mut mesh);
        let written = write_until_it_stalls(&writer);
        let after = rss(&mut mesh);
        assert!(
            written < STALLS_BEFORE,
            "{case}: {written} bytes were taken"
        );
        for (before, after) in before.into_iter().zip(after) {
            let growth = after.saturating_sub(before);
            println!("{case}: {written} bytes taken, a proxy grew by {growth}");
            assert!(growth < GROWTH, "{case}: a proxy grew by {growth} bytes");
        }
        // Nothing of it is lost, and it goes on as soon as somebody reads.
        writer.set_write_timeout(Some(PATIENCE)).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(drain(&reader), written, "{case}");
    }
}
