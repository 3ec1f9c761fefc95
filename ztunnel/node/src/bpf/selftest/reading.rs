//! The bytes that a reader gets, and the counts and previews of readable bytes.

#![allow(
    unsafe_code,
    reason = "socket options and ioctl without a safe binding"
)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Instant;

use nix::sys::socket::{MsgFlags, recv};

use super::Fault;
use super::pair::{
    Family, LIMIT, Pair, PairKind, Pattern, SHORT_WAIT, call, misbehaved, readable, send_thread_id,
    wait_until_asleep,
};

/// Bytes each way.
const TRANSFER: usize = 256 << 10;
/// The largest piece of one write or read.
const PIECE: usize = 40 << 10;

/// Random pieces in both directions at once, over every family. The readers wait with `poll`: other
/// cases test blocking reads.
pub(super) fn exact_bytes(kind: &PairKind) -> Result<(), Fault> {
    for family in families() {
        let pair = kind.pair_of(family)?;
        exchange(&pair)?;
        kind.expect_redirected(&pair.client)?;
        kind.expect_redirected(&pair.server)?;
    }
    Ok(())
}

/// IPv4, and IPv6 if this machine has it.
fn families() -> Vec<Family> {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        vec![Family::V4, Family::V6, Family::Mapped]
    } else {
        vec![Family::V4]
    }
}

fn exchange(pair: &Pair) -> Result<(), Fault> {
    thread::scope(|scope| {
        let work = [
            scope.spawn(|| write_pattern(&pair.client, 1)),
            scope.spawn(|| write_pattern(&pair.server, 2)),
            scope.spawn(|| read_pattern(&pair.client, 2)),
            scope.spawn(|| read_pattern(&pair.server, 1)),
        ];
        let results =
            work.map(|thread| thread.join().unwrap_or_else(|_| Err(misbehaved("a panic"))));
        results.into_iter().collect()
    })
}

fn write_pattern(mut socket: &TcpStream, seed: u64) -> Result<(), Fault> {
    let bytes = Pattern::new(seed).bytes(TRANSFER);
    let mut sizes = Pattern::new(seed + 10);
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let (piece, others) = rest.split_at(sizes.size(PIECE).min(rest.len()));
        socket.write_all(piece).map_err(call("write"))?;
        rest = others;
    }
    Ok(())
}

fn read_pattern(mut socket: &TcpStream, seed: u64) -> Result<(), Fault> {
    let expected = Pattern::new(seed).bytes(TRANSFER);
    let mut sizes = Pattern::new(seed + 20);
    let mut buffer = vec![0; PIECE];
    let mut count = 0;
    while count < TRANSFER {
        readable(socket)?;
        let size = sizes.size(PIECE);
        let read = socket.read(&mut buffer[..size]).map_err(call("read"))?;
        if read == 0 {
            return Err(misbehaved(format!(
                "the end after {count} of {TRANSFER} bytes"
            )));
        }
        if expected.get(count..count + read) != buffer.get(..read) {
            return Err(misbehaved(format!("wrong bytes behind byte {count}")));
        }
        count += read;
    }
    Ok(())
}

/// `FIONREAD` after two writes, and after a partial read.
pub(super) fn readable_bytes(kind: &PairKind) -> Result<(), Fault> {
    let pair = kind.pair()?;
    let (mut client, mut server) = (&pair.client, &pair.server);
    for _ in 0..2 {
        client.write_all(&[7; 500]).map_err(call("write"))?;
    }
    readable(server)?;
    expect_readable(server, 1000)?;
    server.read_exact(&mut [0; 300]).map_err(call("read"))?;
    expect_readable(server, 700)
}

/// Waits for the expected count: TCP delivers its segments one after the other.
fn expect_readable(socket: &TcpStream, expected: libc::c_int) -> Result<(), Fault> {
    let began = Instant::now();
    loop {
        let mut found: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut found) };
        if result != 0 {
            return Err(call("FIONREAD")(std::io::Error::last_os_error()));
        }
        if found == expected {
            return Ok(());
        }
        if began.elapsed() > SHORT_WAIT {
            let text = format!("FIONREAD says {found} bytes where {expected} can be read");
            return Err(misbehaved(text));
        }
        thread::yield_now();
    }
}

/// Bytes of two writes can be peeked at twice and read once.
pub(super) fn peek(kind: &PairKind) -> Result<(), Fault> {
    let pair = kind.pair()?;
    let (mut client, mut server) = (&pair.client, &pair.server);
    client.write_all(b"once ").map_err(call("write"))?;
    client.write_all(b"again").map_err(call("write"))?;
    let mut buffer = [0; 32];
    let began = Instant::now();
    loop {
        readable(server)?;
        let peeked = server.peek(&mut buffer).map_err(call("MSG_PEEK"))?;
        if &buffer[..peeked] == b"once again" {
            break;
        }
        if began.elapsed() > LIMIT {
            return Err(misbehaved(format!("MSG_PEEK shows {peeked} of 10 bytes")));
        }
    }
    let peeked = server.peek(&mut buffer[..3]).map_err(call("MSG_PEEK"))?;
    let mut read = [0; 10];
    server.read_exact(&mut read).map_err(call("read"))?;
    if peeked != 3 || &read != b"once again" {
        return Err(misbehaved("MSG_PEEK removed the bytes"));
    }
    server.set_nonblocking(true).map_err(call("O_NONBLOCK"))?;
    match server.peek(&mut buffer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
        other => Err(misbehaved(format!("MSG_PEEK of nothing says {other:?}"))),
    }
}

/// A read of all bytes waits for the second half.
pub(super) fn wait_all(kind: &PairKind) -> Result<(), Fault> {
    let pair = kind.pair()?;
    let (mut client, server) = (&pair.client, &pair.server);
    let (sender, receiver) = channel();
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            send_thread_id(&sender);
            let mut buffer = [0; 4096];
            recv(server.as_raw_fd(), &mut buffer, MsgFlags::MSG_WAITALL)
        });
        let thread = receiver.recv().map_err(|_gone| misbehaved("a panic"))?;
        for _ in 0..2 {
            wait_until_asleep(thread);
            client.write_all(&[7; 2048]).map_err(call("write"))?;
        }
        match reader.join() {
            Ok(Ok(4096)) => Ok(()),
            Ok(Ok(read)) => Err(misbehaved(format!(
                "MSG_WAITALL returned {read} of 4096 bytes"
            ))),
            Ok(Err(errno)) => Err(call("MSG_WAITALL")(errno.into())),
            Err(_panic) => Err(misbehaved("a panic")),
        }
    })
}
