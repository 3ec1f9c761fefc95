//! Packets on the agent's socket, and the descriptors that come with them.

#![allow(
    unsafe_code,
    reason = "the safe wrappers of recvmsg(2) lose descriptors when there are too many"
)]

use std::io;
use std::mem::{offset_of, size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The longest request: names in Kubernetes have at most 253 bytes, and a request has four names.
pub const MAX_BYTES: usize = 4096;

/// A connection that keeps the boundaries of packets (`SOCK_SEQPACKET`).
#[derive(Debug)]
pub(super) struct Packets(AsyncFd<Socket>);

/// One received packet.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptor: Option<OwnedFd>,
    /// The kernel has dropped bytes beyond the buffer.
    pub(super) too_long: bool,
    /// The kernel has closed descriptors beyond the first.
    pub(super) too_many: bool,
}

impl Packets {
    /// Connects to the socket at this path. Never waits: a listener with a full queue refuses.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)?;
        // SAFETY: the socket owns its descriptor, which stays open and the same while the socket
        // lives.
        let registered = unsafe { AsyncFd::register(socket) };
        Ok(Self(registered?))
    }

    /// Sends one packet; waits while the send buffer is full.
    pub(super) async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let send = |socket: &Socket| socket.send_with_flags(bytes, libc::MSG_NOSIGNAL);
        self.0.async_io(Interest::WRITABLE, send).await.map(drop)
    }

    /// Waits for the next packet; none when the agent has closed the connection.
    pub(super) async fn receive(&self) -> io::Result<Option<Packet>> {
        let packet = self.0.async_io(Interest::READABLE, receive).await?;
        // An empty packet looks like the end of the connection, and no request is empty.
        Ok((!packet.bytes.is_empty()).then_some(packet))
    }
}

/// Space for exactly one descriptor, so that the kernel closes all others.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    descriptor: RawFd,
}

const CONTROL_BYTES: usize = offset_of!(Control, descriptor) + size_of::<RawFd>();

fn receive(socket: &Socket) -> io::Result<Packet> {
    let mut bytes = vec![0; MAX_BYTES];
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: both consist of integers and pointers, for which zero is a valid value.
    let (mut control, mut message) = unsafe { zeroed::<(Control, libc::msghdr)>() };
    control.descriptor = -1;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = CONTROL_BYTES;
    // SAFETY: the header's pointers and lengths describe `bytes` and `control`, which outlive the
    // call.
    let length =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let length = usize::try_from(length).map_err(|_negative| io::Error::last_os_error())?;
    let rights = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
    let has_descriptor = (control.header.cmsg_level, control.header.cmsg_type) == rights;
    let descriptor = (has_descriptor && control.descriptor >= 0).then(|| {
        // SAFETY: the kernel has opened it in this process with this packet; no other value owns it.
        unsafe { OwnedFd::from_raw_fd(control.descriptor) }
    });
    bytes.truncate(length);
    Ok(Packet {
        bytes,
        descriptor,
        too_long: message.msg_flags & libc::MSG_TRUNC != 0,
        too_many: message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}
