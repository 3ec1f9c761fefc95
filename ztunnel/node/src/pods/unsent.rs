//! How much of what was written to a connection its other end has not acknowledged.

#![allow(
    unsafe_code,
    reason = "ioctl(2) has no safe binding for SIOCOUTQ; the one block is here"
)]

use std::io;
use std::os::fd::AsRawFd as _;

use tokio::net::TcpStream;

/// The bytes in the send queue of a connection; a FIN that is not acknowledged counts as one. What
/// is in the queue is lost when the connection is reset.
///
/// # Errors
/// When the socket is none that is connected.
pub fn unsent(stream: &TcpStream) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ of tcp(7) writes one int, and the pointer is to one.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or_default())
}
