//! Back-pressure: a writer must stop when its peer does not read.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use socket2::SockRef;

use super::Fault;
use super::pair::{LIMIT, Pair, PairKind, call, misbehaved, readable, wait};

/// The size of the socket buffers, far less than what the writers try to write.
const BUFFER: usize = 64 << 10;
const TOO_MUCH: usize = 4 << 20;
const PIECE: usize = 32 << 10;

fn pair_with_small_buffers(kind: &PairKind) -> Result<Pair, Fault> {
    let pair = kind.pair()?;
    for socket in [&pair.client, &pair.server] {
        let socket = SockRef::from(socket);
        let set = socket.set_send_buffer_size(BUFFER);
        set.and_then(|()| socket.set_recv_buffer_size(BUFFER))
            .map_err(call("SO_SNDBUF and SO_RCVBUF"))?;
    }
    Ok(pair)
}

/// A blocking writer stops, and continues when the peer reads.
pub(super) fn slow_reader(kind: &PairKind) -> Result<(), Fault> {
    let pair = pair_with_small_buffers(kind)?;
    let written = AtomicUsize::new(0);
    thread::scope(|scope| {
        let writer = scope.spawn(|| write_too_much(&pair.client, &written));
        let stopped = expect_stopped(&written);
        // Also after a fault, so that the writer's thread ends.
        let drained = drain(&pair.server, TOO_MUCH);
        let wrote = writer.join().unwrap_or_else(|_| Err(misbehaved("a panic")));
        stopped.and(drained).and(wrote)
    })
}

fn write_too_much(mut socket: &TcpStream, written: &AtomicUsize) -> Result<(), Fault> {
    while written.load(Ordering::Relaxed) < TOO_MUCH {
        socket.write_all(&[7; PIECE]).map_err(call("write"))?;
        written.fetch_add(PIECE, Ordering::Relaxed);
    }
    Ok(())
}

fn expect_stopped(written: &AtomicUsize) -> Result<(), Fault> {
    let began = Instant::now();
    let mut before = 0;
    loop {
        thread::sleep(Duration::from_millis(3));
        let now = written.load(Ordering::Relaxed);
        if now >= TOO_MUCH || began.elapsed() > LIMIT {
            return Err(misbehaved(format!(
                "a writer was not blocked: {} KiB written and nothing read",
                now >> 10
            )));
        }
        if now == before && now > 0 {
            return Ok(());
        }
        before = now;
    }
}

fn drain(mut socket: &TcpStream, expected: usize) -> Result<(), Fault> {
    let mut buffer = vec![0; BUFFER];
    let mut count = 0;
    while count < expected {
        readable(socket)?;
        count += socket.read(&mut buffer).map_err(call("read"))?;
    }
    Ok(())
}

/// A non-blocking writer gets EAGAIN, and is woken when there is space.
pub(super) fn would_block(kind: &PairKind) -> Result<(), Fault> {
    let pair = pair_with_small_buffers(kind)?;
    let mut client = &pair.client;
    client.set_nonblocking(true).map_err(call("O_NONBLOCK"))?;
    let mut written = 0;
    let mut refused = 0;
    // Bytes in flight make space once: the second EAGAIN is final.
    while refused < 2 {
        match client.write(&[7; PIECE]) {
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                refused += 1;
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(call("write")(error)),
        }
        if written >= TOO_MUCH {
            return Err(misbehaved(format!(
                "no EAGAIN for a non-blocking writer: {} KiB written and nothing read",
                written >> 10
            )));
        }
    }
    drain(&pair.server, written)?;
    if wait(client, PollFlags::POLLOUT, LIMIT)?.contains(PollFlags::POLLOUT) {
        Ok(())
    } else {
        Err(misbehaved(
            "a writer is not woken when there is space again",
        ))
    }
}
