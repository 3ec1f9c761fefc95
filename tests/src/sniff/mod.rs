//! Reads every packet that crosses a link, as tcpdump would, and looks for a marker in it.
//!
//! This is how tests and the demo prove that a payload does, or does not, cross the link
//! between two nodes in the clear.

mod handshake;

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use crate::net::{Host, Node, World};

pub use handshake::{Handshake, TLS_1_3};

/// More than the largest packet that segmentation offload hands over.
const PACKET_BYTES: usize = 256 * 1024;
/// How many handshakes are kept.
const HANDSHAKES: usize = 1000;
/// How much may queue while the reader is not running, bytes.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// What was seen on the link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Packets, both directions. Offloads make one of many.
    pub packets: u64,
    /// Their bytes, headers included.
    pub bytes: u64,
    /// Packets that held the marker.
    pub hits: u64,
    /// TLS handshakes, the first [`HANDSHAKES`] of them.
    pub handshakes: Vec<Handshake>,
}

/// A sniffer at work.
#[derive(Debug)]
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Seen>>,
}

impl Sniffer {
    /// Listens on the link from `node` to the node named `to`.
    ///
    /// # Errors
    /// When there is no such link, or without the right to open a packet socket.
    pub fn between(node: &Node, to: &str, marker: &[u8]) -> Result<Self> {
        Self::on_link(&node.host, &World::link_to(to), marker)
    }

    /// Listens on a link of a host, by the link's name. Packets that cross after this call
    /// are seen.
    ///
    /// # Errors
    /// When there is no such link, or without the right to open a packet socket.
    pub fn on_link(host: &Host, link: &str, marker: &[u8]) -> Result<Self> {
        let (socket, index) = host.enter(|| -> Result<(OwnedFd, usize)> {
            let index = crate::net::index_of(link)?;
            Ok((open()?, usize::try_from(index)?))
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let marker = marker.to_vec();
        let thread = std::thread::spawn(move || read(&socket, index, &marker, &stopped));
        Ok(Self { stop, thread })
    }

    /// Reads what still is queued, then reports.
    ///
    /// # Errors
    /// When reading failed.
    pub fn finish(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_panic| anyhow!("the sniffer panicked"))?
    }
}

/// On a link that never falls silent, what is queued is read for this long after the stop.
const DRAIN: Duration = Duration::from_secs(1);

fn open() -> Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .context("opening a packet socket")?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 20_000))
        .context("setting a receive timeout")?;
    setsockopt(&socket, sockopt::RcvBufForce, &QUEUE_BYTES).context("sizing the packet queue")?;
    Ok(socket)
}

fn read(socket: &OwnedFd, index: usize, marker: &[u8], stop: &AtomicBool) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut buffer = vec![0; PACKET_BYTES];
    let mut end = None;
    loop {
        // Asked before reading, so that whatever was queued by then is read.
        let last = stop.load(Ordering::Relaxed);
        if last && *end.get_or_insert_with(|| Instant::now() + DRAIN) <= Instant::now() {
            return Ok(seen);
        }
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, Some(from))) if from.ifindex() == index => {
                let packet = buffer.get(..length).unwrap_or(&buffer);
                seen.packets += 1;
                seen.bytes += u64::try_from(length)?;
                seen.hits += u64::from(contains(packet, marker));
                if seen.handshakes.len() < HANDSHAKES {
                    seen.handshakes.extend(handshake::read(packet));
                }
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::EAGAIN) if last => return Ok(seen),
            Err(nix::errno::Errno::EAGAIN) => {}
            Err(errno) => return Err(errno).context("reading packets"),
        }
    }
}

fn contains(packet: &[u8], marker: &[u8]) -> bool {
    let Some(first) = marker.first() else {
        return false;
    };
    packet
        .iter()
        .enumerate()
        .filter(|(_, byte)| *byte == first)
        .any(|(at, _)| packet.get(at..at + marker.len()) == Some(marker))
}

/// How long a packet may take from one end of a simulated link to a sniffer.
pub const SETTLE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_found_wherever_it_stands() {
        for (packet, found) in [
            ("marker", true),
            ("xxmarker", true),
            ("mamarkerxx", true),
            ("marke", false),
            ("", false),
        ] {
            assert_eq!(contains(packet.as_bytes(), b"marker"), found, "{packet}");
        }
        assert!(!contains(b"anything", b""));
    }
}
