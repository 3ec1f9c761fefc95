//! Less common ways to send and receive.

#![allow(
    unsafe_code,
    reason = "socket options and ioctl without a safe binding"
)]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv, send};
use nix::unistd::pipe2;

use super::Fault;
use super::pair::{PairKind, Pattern, SHORT_WAIT, call, misbehaved, readable, wait};

const SIZE: usize = 8 << 10;

fn pipe() -> Result<(OwnedFd, OwnedFd), Fault> {
    pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(|errno| call("pipe")(errno.into()))
}

/// From the socket into a pipe.
pub(super) fn splice_from(kind: &PairKind) -> Result<(), Fault> {
    let pair = kind.pair()?;
    let (mut client, server) = (&pair.client, &pair.server);
    let sent = Pattern::new(3).bytes(SIZE);
    client.write_all(&sent).map_err(call("write"))?;
    server.set_nonblocking(true).map_err(call("O_NONBLOCK"))?;
    let (from, to) = pipe()?;
    let mut count = 0;
    while count < SIZE {
        readable(server)?;
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
        match splice(server, None, &to, None, SIZE - count, flags) {
            Ok(0) => {
                return Err(misbehaved(
                    "splice() reports the end of a stream that has data",
                ));
            }
            Ok(moved) => count += moved,
            Err(nix::Error::EAGAIN) => {
                return Err(misbehaved(
                    "splice() reports no data although there is some",
                ));
            }
            Err(errno) => return Err(call("splice() from the socket")(errno.into())),
        }
    }
    expect(&sent, File::from(from), "splice() from the socket")
}

/// From a pipe into the socket.
pub(super) fn splice_to(kind: &PairKind) -> Result<(), Fault> {
    let pair = kind.pair()?;
    let sent = Pattern::new(4).bytes(SIZE);
    let (from, to) = pipe()?;
    File::from(to).write_all(&sent).map_err(call("write"))?;
    let mut count = 0;
    while count < SIZE {
        match splice(
            &from,
            None,
            &pair.client,
            None,
            SIZE - count,
            SpliceFFlags::empty(),
        ) {
            Ok(0) => return Err(misbehaved("splice() sends nothing")),
            Ok(moved) => count += moved,
            Err(errno) => return Err(call("splice() to the socket")(errno.into())),
        }
    }
    // The reader polls: other cases test blocking reads.
    let mut received = Vec::new();
    let mut server = &pair.server;
    while received.len() < SIZE {
        readable(server)?;
        let mut buffer = [0; SIZE];
        let read = server.read(&mut buffer).map_err(call("read"))?;
        received.extend_from_slice(&buffer[..read]);
    }
    expect(&sent, received.as_slice(), "splice() to the socket")
}

fn expect(sent: &[u8], mut from: impl io::Read, what: &str) -> Result<(), Fault> {
    let mut received = vec![0; sent.len()];
    from.read_exact(&mut received).map_err(call("read"))?;
    if received == sent {
        Ok(())
    } else {
        Err(misbehaved(format!("{what} changes the bytes")))
    }
}

/// An urgent byte after two others.
pub(super) fn urgent(kind: &PairKind) -> Result<(), Fault> {
    let pair = kind.pair()?;
    let (mut client, mut server) = (&pair.client, &pair.server);
    client.write_all(b"ab").map_err(call("write"))?;
    send(client.as_raw_fd(), b"!", MsgFlags::MSG_OOB)
        .map_err(|errno| call("MSG_OOB")(errno.into()))?;
    if !wait(server, PollFlags::POLLPRI, SHORT_WAIT)?.contains(PollFlags::POLLPRI) {
        return Err(misbehaved("an urgent byte is not announced"));
    }
    let mut byte = [0];
    recv(server.as_raw_fd(), &mut byte, MsgFlags::MSG_OOB)
        .map_err(|errno| call("MSG_OOB")(errno.into()))?;
    let mut others = [0; 2];
    server.read_exact(&mut others).map_err(call("read"))?;
    if (&byte, &others) == (b"!", b"ab") {
        Ok(())
    } else {
        Err(misbehaved("an urgent byte is not the one that was sent"))
    }
}

/// The sender may reuse its buffer only after the completion is reported.
pub(super) fn zero_copy(kind: &PairKind) -> Result<(), Fault> {
    let pair = kind.pair()?;
    let (client, mut server) = (&pair.client, &pair.server);
    if set(client, libc::SOL_SOCKET, libc::SO_ZEROCOPY, &1_i32).is_err() {
        // This kernel does not offer it.
        return Ok(());
    }
    let flags = MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY);
    let sent = send(client.as_raw_fd(), &[7; SIZE], flags);
    sent.map_err(|errno| call("MSG_ZEROCOPY")(errno.into()))?;
    readable(server)?;
    let mut buffer = [0; SIZE];
    let _part = server.read(&mut buffer).map_err(call("read"))?;
    let began = Instant::now();
    while began.elapsed() < SHORT_WAIT {
        let events = wait(client, PollFlags::POLLERR, Duration::from_millis(10))?;
        let found = recv(client.as_raw_fd(), &mut buffer, MsgFlags::MSG_ERRQUEUE);
        if events.contains(PollFlags::POLLERR) && found.is_ok() {
            return Ok(());
        }
    }
    Err(misbehaved("a MSG_ZEROCOPY send is never reported as done"))
}

/// `struct tls12_crypto_info_aes_gcm_128` of linux/tls.h.
#[repr(C)]
struct Secrets {
    version: u16,
    cipher: u16,
    iv: [u8; 8],
    key: [u8; 16],
    salt: [u8; 4],
    sequence: [u8; 8],
}

const SOL_TLS: libc::c_int = 282;
const TLS_TX: libc::c_int = 1;
const TLS_1_2: u16 = 0x0303;
const AES_GCM_128: u16 = 51;
/// Type application data, version 1.2.
const RECORD: [u8; 3] = [23, 3, 3];

/// The bytes of a TLS record arrive, not the plaintext.
pub(super) fn kernel_tls(kind: &PairKind) -> Result<(), Fault> {
    let pair = kind.pair()?;
    let (mut client, mut server) = (&pair.client, &pair.server);
    if set(client, libc::SOL_TCP, libc::TCP_ULP, b"tls").is_err() {
        // This kernel does not offer it, or refuses it for joined sockets: the application then
        // encrypts by itself.
        return Ok(());
    }
    let secrets = Secrets {
        version: TLS_1_2,
        cipher: AES_GCM_128,
        iv: [1; 8],
        key: [2; 16],
        salt: [3; 4],
        sequence: [0; 8],
    };
    set(client, SOL_TLS, TLS_TX, &secrets).map_err(call("TLS_TX"))?;
    client.write_all(b"secret").map_err(call("write"))?;
    readable(server)?;
    let mut buffer = [0; 64];
    let read = server.read(&mut buffer).map_err(call("read"))?;
    if buffer.starts_with(&RECORD) && !buffer[..read].windows(6).any(|text| text == b"secret") {
        Ok(())
    } else {
        Err(misbehaved(
            "bytes that kernel TLS should have encrypted arrive as plaintext",
        ))
    }
}

fn set<T>(socket: &TcpStream, level: i32, name: i32, value: &T) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the value has the size that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
