//! A sniffer: captures every packet of a link, as tcpdump does, and searches it for a marker. Tests and
//! the demo use it to prove whether a payload crosses a link in plaintext.

mod handshake;

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use crate::net::{Host, Node, World};

pub use handshake::{Handshake, TLS_1_3};

/// The buffer size, in bytes; larger than the largest packet with segmentation offload.
const PACKET_BYTES: usize = 256 * 1024;
/// The largest number of handshakes that are kept.
const HANDSHAKES: usize = 1000;
/// The size of the packet queue, in bytes.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// The captured traffic of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SniffedTraffic {
    /// Packets in both directions. Offloads combine several packets into one.
    pub packets: u64,
    /// Bytes, including headers.
    pub bytes: u64,
    /// Packets that contain the marker.
    pub marker_packets: u64,
    /// TLS handshakes, the first [`HANDSHAKES`] of them.
    pub handshakes: Vec<Handshake>,
}

/// A running sniffer.
#[derive(Debug)]
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<SniffedTraffic>>,
}

impl Sniffer {
    /// Captures on the link from `node` to the node named `to`.
    ///
    /// # Errors
    /// When the link does not exist, or without the privilege to open a packet socket.
    pub fn between(node: &Node, to: &str, marker: &[u8]) -> Result<Self> {
        Self::on_link(&node.host, &World::link_to(to), marker)
    }

    /// Captures on a link of a host, from the return of this call on.
    ///
    /// # Errors
    /// When the link does not exist, or without the privilege to open a packet socket.
    pub fn on_link(host: &Host, link: &str, marker: &[u8]) -> Result<Self> {
        let (socket, index) = host.enter(|| socket_on(link))?;
        Ok(Self::start(socket, index, marker))
    }

    /// Captures on a link of the network namespace of a process, such as that of a node that is a
    /// container.
    ///
    /// # Errors
    /// As [`Self::on_link`], and when there is no such process.
    pub fn beside_process(pid: u32, link: &str, marker: &[u8]) -> Result<Self> {
        let namespace = File::open(format!("/proc/{pid}/ns/net"))
            .with_context(|| format!("opening the network namespace of process {pid}"))?;
        let link = link.to_owned();
        // On a thread of its own, which ends in that namespace.
        let opened = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
            socket_on(&link)
        });
        let opened = opened
            .join()
            .map_err(|_panic| anyhow!("the thread panicked"))?;
        let (socket, index) = opened?;
        Ok(Self::start(socket, index, marker))
    }

    fn start(socket: OwnedFd, index: usize, marker: &[u8]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let marker = marker.to_vec();
        let thread = std::thread::spawn(move || read(&socket, index, &marker, &stopped));
        Self { stop, thread }
    }

    /// Reads the queued packets and returns the result.
    ///
    /// # Errors
    /// When reading failed.
    pub fn finish(self) -> Result<SniffedTraffic> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_panic| anyhow!("the sniffer panicked"))?
    }
}

/// The longest time that the queue is read after the stop, if packets keep arriving.
const DRAIN: Duration = Duration::from_secs(1);

/// A packet socket, and the index of a link in the thread's network namespace.
fn socket_on(link: &str) -> Result<(OwnedFd, usize)> {
    let index = crate::net::index_of(link)?;
    Ok((open()?, usize::try_from(index)?))
}

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

fn read(
    socket: &OwnedFd,
    index: usize,
    marker: &[u8],
    stop: &AtomicBool,
) -> Result<SniffedTraffic> {
    let mut traffic = SniffedTraffic::default();
    let mut buffer = vec![0; PACKET_BYTES];
    let mut end = None;
    loop {
        // Loaded before reading, so that the packets that are queued at the stop are read.
        let last = stop.load(Ordering::Relaxed);
        if last && *end.get_or_insert_with(|| Instant::now() + DRAIN) <= Instant::now() {
            return Ok(traffic);
        }
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, Some(from))) if from.ifindex() == index => {
                let packet = buffer.get(..length).unwrap_or(&buffer);
                traffic.packets += 1;
                traffic.bytes += u64::try_from(length)?;
                traffic.marker_packets += u64::from(contains(packet, marker));
                if traffic.handshakes.len() < HANDSHAKES {
                    traffic.handshakes.extend(handshake::parse(packet));
                }
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::EAGAIN) if last => return Ok(traffic),
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

/// The time that a packet may take from one end of a simulated link to the sniffer.
pub const SETTLE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_found_at_any_position() {
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
