//! A reader that does not read stalls its writer, and the memory of the proxies stays bounded.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::time::Duration;

use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_paths;
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::Stream;

use crate::connections::{TIMEOUT, listen};

/// The largest number of bytes to write. A path without back-pressure would accept all of them.
const OFFERED: usize = 512 << 20;
/// More than all windows and socket buffers of the path.
const STALLS_BEFORE: usize = 128 << 20;
/// The largest growth of a proxy for one such connection: the stream's window (2 MiB), the send
/// queue (1 MiB) and read buffers, with a margin for the allocator.
const GROWTH: u64 = 24 << 20;
/// The writer is stalled if no byte is accepted for this long.
const STILL: Duration = Duration::from_secs(2);

/// Writes until no more bytes are accepted. Returns the number of accepted bytes.
fn write_until_stalled(mut stream: &Stream) -> usize {
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

/// The byte at a position of the stream; 251 divides no buffer size.
fn pattern(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap()
}

fn drain(mut stream: &Stream) -> usize {
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

// Not with `acceleration: on`: there the writer never stalls, which is one of the reasons why
// `auto` tests the kernel first.
on_paths!(a_slow_reader_stalls_its_writer: tunnel, direct, auto);
fn a_slow_reader_stalls_its_writer(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let listener = listen(topology.server(), 8080);
    for (family, client_writes) in [
        (Family::V4, true),
        (Family::V4, false),
        (Family::V6, true),
        (Family::V6, false),
    ] {
        let case = format!("{family:?}, the client writes: {client_writes}");
        let to = topology.server().at(family, 8080);
        let (client, server) = topology.connect(to, &listener).unwrap();
        let (writer, reader) = if client_writes {
            (client, server)
        } else {
            (server, client)
        };
        let rss = |mesh: &mut Mesh<'_>| ["a", "b"].map(|node| mesh.proxy(node).rss().unwrap());
        let before = rss(&mut mesh);
        let written = write_until_stalled(&writer);
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
        // No byte is lost, and the transfer continues as soon as the reader reads.
        writer.set_write_timeout(Some(TIMEOUT)).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(drain(&reader), written, "{case}");
    }
}
