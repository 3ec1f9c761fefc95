//! What a reader gets, and what it is told about what it could get.

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
    Family, Ground, LIMIT, MOMENT, Pair, Pattern, asleep, call, readable, tell_who, wrong,
};

/// Bytes each way.
const TRANSFER: usize = 256 << 10;
/// The largest piece in which they are written and read.
const PIECE: usize = 40 << 10;

/// Random pieces both ways at once, over every family. The readers wait with `poll`: what is
/// wrong with blocking reads is found elsewhere.
pub(super) fn exact_bytes(ground: &Ground) -> Result<(), Fault> {
    for family in families() {
        let pair = ground.pair_of(family)?;
        exchange(&pair)?;
        ground.went_its_way(&pair.client)?;
        ground.went_its_way(&pair.server)?;
    }
    Ok(())
}

/// IPv4, and IPv6 where there is some.
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
        let results = work.map(|thread| thread.join().unwrap_or_else(|_| Err(wrong("a panic"))));
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
        let place = sizes.size(PIECE);
        let read = socket.read(&mut buffer[..place]).map_err(call("read"))?;
        if read == 0 {
            return Err(wrong(format!("the end after {count} of {TRANSFER} bytes")));
        }
        if expected.get(count..count + read) != buffer.get(..read) {
            return Err(wrong(format!("wrong bytes behind byte {count}")));
        }
        count += read;
    }
    Ok(())
}

/// `FIONREAD` after two writes, and after a part was read.
pub(super) fn readable_bytes(ground: &Ground) -> Result<(), Fault> {
    let pair = ground.pair()?;
    let (mut client, mut server) = (&pair.client, &pair.server);
    for _ in 0..2 {
        client.write_all(&[7; 500]).map_err(call("write"))?;
    }
    readable(server)?;
    expect_readable(server, 1000)?;
    server.read_exact(&mut [0; 300]).map_err(call("read"))?;
    expect_readable(server, 700)
}

/// TCP hands its segments over one after the other: what is right for a moment only must become so.
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
        if began.elapsed() > MOMENT {
            let text = format!("FIONREAD says {found} bytes where {expected} can be read");
            return Err(wrong(text));
        }
        thread::yield_now();
    }
}

/// Bytes of two writes are seen twice and read once.
pub(super) fn peek(ground: &Ground) -> Result<(), Fault> {
    let pair = ground.pair()?;
    let (mut client, mut server) = (&pair.client, &pair.server);
    client.write_all(b"once ").map_err(call("write"))?;
    client.write_all(b"again").map_err(call("write"))?;
    let mut buffer = [0; 32];
    let began = Instant::now();
    loop {
        readable(server)?;
        let seen = server.peek(&mut buffer).map_err(call("MSG_PEEK"))?;
        if &buffer[..seen] == b"once again" {
            break;
        }
        if began.elapsed() > LIMIT {
            return Err(wrong(format!("MSG_PEEK shows {seen} of 10 bytes")));
        }
    }
    let seen = server.peek(&mut buffer[..3]).map_err(call("MSG_PEEK"))?;
    let mut read = [0; 10];
    server.read_exact(&mut read).map_err(call("read"))?;
    if seen != 3 || &read != b"once again" {
        return Err(wrong("bytes that were only peeked at are gone"));
    }
    server.set_nonblocking(true).map_err(call("O_NONBLOCK"))?;
    match server.peek(&mut buffer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
        other => Err(wrong(format!("MSG_PEEK of nothing says {other:?}"))),
    }
}

/// A read that wants everything waits for the second half.
pub(super) fn wait_all(ground: &Ground) -> Result<(), Fault> {
    let pair = ground.pair()?;
    let (mut client, server) = (&pair.client, &pair.server);
    let (tell, told) = channel();
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            tell_who(&tell);
            let mut buffer = [0; 4096];
            recv(server.as_raw_fd(), &mut buffer, MsgFlags::MSG_WAITALL)
        });
        let reads = told.recv().map_err(|_gone| wrong("a panic"))?;
        for _ in 0..2 {
            asleep(reads);
            client.write_all(&[7; 2048]).map_err(call("write"))?;
        }
        match reader.join() {
            Ok(Ok(4096)) => Ok(()),
            Ok(Ok(read)) => Err(wrong(format!("MSG_WAITALL returned {read} of 4096 bytes"))),
            Ok(Err(errno)) => Err(call("MSG_WAITALL")(errno.into())),
            Err(_panic) => Err(wrong("a panic")),
        }
    })
}
