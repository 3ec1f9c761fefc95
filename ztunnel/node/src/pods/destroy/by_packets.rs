//! Destroys connections with packets, for kernels without `SOCK_DESTROY`: with resets that have the
//! right sequence numbers.
//!
//! A socket accepts a reset only at exactly the sequence number that it expects next (RFC 5961,
//! section 3.2), and only the socket itself reveals that number. So it is probed: a segment in the
//! name of its peer, with one byte outside of its window, must be answered with an acknowledgement
//! (RFC 9293, section 3.10.7.4). The answer has both the number that the socket expects and the
//! number that its peer expects. A connection during its handshake is probed with a SYN: the opening
//! end answers as in a simultaneous open, and the accepting end answers a second SYN like a byte
//! outside of its window. A packet socket observes the answer, and a reset to both ends follows.
//!
//! The byte cannot reach the application. With a random sequence number it is inside the window in
//! one of a thousand tries. Even then the socket rejects its random acknowledgement number, and it
//! would deliver the byte only after the bytes before it, which the reset outruns. Linux limits the
//! rate of such answers, but not the answers to segments with data (`tcp_oow_rate_limited`).
//!
//! Under bulk traffic the numbers may have advanced when the reset arrives. So each further segment
//! of the socket causes another reset. The kernel's table decides: a connection that is still listed
//! is probed again, or reported as a failure.
//!
//! The peer may have dropped the reset because its receive buffer was full. So after the end of a
//! socket its peer is probed as well, in the name of that socket. A peer that is still open answers,
//! and the local kernel, which has no such socket any more, answers that with the fitting reset. The
//! packet socket observes that reset, and the peer is probed again until it no longer answers.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use foldhash::HashMap;

use super::diag::Diag;
use super::segment::{Kind, Observed, Segment, Sender};
use super::sniffer::{MAX_TARGETS, Sniffer};
use super::{Connection, Error, Failure, ListedSocket, Outcome, PACKETS_TIMEOUT};

/// How long to wait for the answers to one round of probes. Over loopback they arrive at once, unless
/// the application is just using the socket.
const ROUND: Duration = Duration::from_millis(10);
/// How often the peer of a destroyed socket is probed at most.
const PEER_PROBES: usize = 8;
/// The least time for each group of [`MAX_TARGETS`] connections, however many groups there are.
const GROUP_TIME_MIN: Duration = Duration::from_millis(20);

/// Destroys connections within a bounded time.
pub(super) fn destroy(diag: &mut Diag, sockets: &[ListedSocket]) -> Result<Vec<Outcome>, Error> {
    let end = Instant::now() + PACKETS_TIMEOUT;
    let mut outcomes = Vec::with_capacity(sockets.len());
    let mut groups = sockets.chunks(MAX_TARGETS);
    while let Some(group) = groups.next() {
        let others = u32::try_from(groups.len()).unwrap_or(u32::MAX);
        let share = end.saturating_duration_since(Instant::now()) / others.saturating_add(1);
        let until = Instant::now() + share.max(GROUP_TIME_MIN);
        outcomes.extend(Attempt::new(group)?.run(diag, until)?);
    }
    Ok(outcomes)
}

/// A socket that is being destroyed.
struct TargetSocket {
    socket: ListedSocket,
    /// The furthest numbers of its segments.
    observed: Option<Observed>,
    probes: u32,
    resets: u32,
    /// Whether it has not answered the last probe yet.
    unanswered: bool,
    /// Whether it has sent a segment since the last reset.
    fresh: bool,
    /// Whether the kernel still lists it.
    alive: bool,
    /// Whether its peer may not know that it has ended.
    peer_unsure: bool,
}

struct Attempt {
    sniffer: Sniffer,
    targets: Vec<TargetSocket>,
    /// The index of a target by its local and remote address.
    index: HashMap<(SocketAddr, SocketAddr), usize>,
    /// A buffer for observed segments, reused.
    observed: Vec<Observed>,
}

impl Attempt {
    fn new(sockets: &[ListedSocket]) -> Result<Self, Error> {
        let target = |socket: &ListedSocket| TargetSocket {
            socket: *socket,
            observed: None,
            probes: 0,
            resets: 0,
            unanswered: true,
            fresh: false,
            alive: true,
            peer_unsure: true,
        };
        let ends = |socket: &ListedSocket| (socket.connection.local, socket.connection.remote);
        let index = sockets.iter().enumerate();
        Ok(Self {
            sniffer: Sniffer::open(sockets)?,
            targets: sockets.iter().map(target).collect(),
            index: index.map(|(at, socket)| (ends(socket), at)).collect(),
            observed: Vec::new(),
        })
    }

    fn run(mut self, diag: &mut Diag, until: Instant) -> Result<Vec<Outcome>, Error> {
        let failed = |source| Error::Packets {
            what: "listen to packets",
            source,
        };
        loop {
            let round = until.min(Instant::now() + ROUND);
            self.send_probes();
            while self.targets.iter().any(TargetSocket::is_unanswered) && Instant::now() < round {
                self.send_resets(round).map_err(failed)?;
            }
            self.refresh(diag)?;
            if !self.targets.iter().any(TargetSocket::is_pending) || Instant::now() >= until {
                break;
            }
            // The next probes wait for the next round, but a busy socket sends segments all the time.
            while Instant::now() < round {
                self.send_resets(round).map_err(failed)?;
            }
        }
        self.notify_peers(until).map_err(failed)?;
        Ok(self
            .targets
            .into_iter()
            .map(TargetSocket::outcome)
            .collect())
    }

    /// Probes every pending socket for its numbers.
    fn send_probes(&mut self) {
        for target in self.targets.iter_mut().filter(|target| target.is_pending()) {
            target.probes += 1;
            target.unanswered = true;
            log_unsent(self.sniffer.send(&target.probe()));
        }
    }

    /// Waits for segments of the sockets, and answers them with resets.
    fn send_resets(&mut self, until: Instant) -> io::Result<()> {
        self.sniffer.listen(until, &mut self.observed)?;
        self.record();
        for target in self.targets.iter_mut().filter(|target| target.is_pending()) {
            if std::mem::take(&mut target.fresh) {
                target.send_resets(&self.sniffer);
            }
        }
        Ok(())
    }

    /// Makes sure that the peers of destroyed sockets know it. Each peer is probed once, and again
    /// while time is left.
    fn notify_peers(&mut self, until: Instant) -> io::Result<()> {
        // Segments from before the end of a socket are no answers.
        self.sniffer.drain(&mut self.observed);
        self.record();
        for _ in 0..PEER_PROBES {
            let mut probed = false;
            for target in self.targets.iter_mut().filter(|target| !target.alive) {
                if std::mem::take(&mut target.peer_unsure) {
                    log_unsent(self.sniffer.send(&target.peer_probe()));
                    probed = true;
                }
            }
            if !probed {
                break;
            }
            let round = until.min(Instant::now() + ROUND);
            while Instant::now() < round {
                self.sniffer.listen(round, &mut self.observed)?;
                self.record();
            }
        }
        Ok(())
    }

    /// Records the observed segments with their targets.
    fn record(&mut self) {
        for observed in &self.observed {
            let at = self.index.get(&(observed.from, observed.to)).copied();
            if let Some(at) = at
                && let Some(target) = self.targets.get_mut(at)
            {
                target.record(*observed);
            }
        }
    }

    /// Asks the kernel which sockets still exist.
    fn refresh(&mut self, diag: &mut Diag) -> Result<(), Error> {
        let pending = |target: &&mut TargetSocket| target.is_pending();
        let mut pending: Vec<&mut TargetSocket> = self.targets.iter_mut().filter(pending).collect();
        let wanted: Vec<Connection> = pending
            .iter()
            .map(|target| Connection {
                cookie: target.socket.found.cookie.try_into().ok(),
                ..target.socket.connection
            })
            .collect();
        for (target, found) in pending.iter_mut().zip(diag.find(&wanted)?) {
            match found {
                Some(found) => target.socket.found = found,
                None => target.alive = false,
            }
        }
        Ok(())
    }
}

impl TargetSocket {
    /// Whether the socket exists and packets can reach it.
    fn is_pending(&self) -> bool {
        self.alive && self.socket.found.device == 0
    }

    fn is_unanswered(&self) -> bool {
        self.is_pending() && self.unanswered
    }

    /// A segment in the peer's name that the socket has to answer.
    fn probe(&self) -> Segment {
        let Connection { local, remote, .. } = self.socket.connection;
        let (kind, data): (_, &'static [u8]) = if self.socket.found.state.is_opening() {
            (Kind::Syn, &[])
        } else {
            (Kind::Ack, &[0])
        };
        let before = |observed: Observed| observed.expected.wrapping_sub(1 << 30);
        Segment {
            kind,
            from: remote,
            to: local,
            // Far behind the window, if the window is known.
            sequence: self.observed.map_or_else(rand::random, before),
            acknowledgement: rand::random(),
            data,
        }
    }

    /// A segment in the socket's own name that its peer has to answer.
    fn peer_probe(&self) -> Segment {
        let Connection { local, remote, .. } = self.socket.connection;
        let before = |observed: Observed| observed.next.wrapping_sub(1 << 30);
        Segment {
            kind: Kind::Ack,
            from: local,
            to: remote,
            sequence: self.observed.map_or_else(rand::random, before),
            acknowledgement: rand::random(),
            data: &[0],
        }
    }

    /// Keeps the furthest numbers: a retransmission has earlier ones.
    fn record(&mut self, observed: Observed) {
        if observed.sender == Sender::NoSocket {
            // This reset went to the peer, which may have dropped it.
            self.peer_unsure = true;
            return;
        }
        let later = |new: u32, old: u32| {
            if new.wrapping_sub(old) < 1 << 31 {
                new
            } else {
                old
            }
        };
        self.unanswered = false;
        self.fresh = true;
        self.observed = Some(self.observed.map_or(observed, |last| Observed {
            next: later(observed.next, last.next),
            expected: later(observed.expected, last.expected),
            ..observed
        }));
    }

    /// Sends both ends a reset with the observed numbers.
    fn send_resets(&mut self, sniffer: &Sniffer) {
        let Some(observed) = self.observed else {
            return;
        };
        self.resets += 1;
        let to_socket = Segment {
            kind: Kind::Reset,
            from: observed.to,
            to: observed.from,
            sequence: observed.expected,
            acknowledgement: observed.next,
            data: &[],
        };
        log_unsent(sniffer.send(&to_socket));
        let to_peer = Segment {
            kind: Kind::Reset,
            from: observed.from,
            to: observed.to,
            sequence: observed.next,
            acknowledgement: observed.expected,
            data: &[],
        };
        log_unsent(sniffer.send(&to_peer));
    }

    fn outcome(self) -> Outcome {
        let device = self.socket.found.device;
        match (self.alive, self.resets) {
            (false, _) => Outcome::Destroyed,
            (true, _) if device != 0 => Outcome::Failed(Failure::Bound { device }),
            (true, 0) => Outcome::Failed(Failure::Unanswered {
                probes: self.probes,
            }),
            (true, resets) => Outcome::Failed(Failure::Outran { resets }),
        }
    }
}

/// A segment that cannot be sent is like a segment without an answer.
fn log_unsent(sent: io::Result<()>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "cannot send a segment to destroy a connection");
    }
}
