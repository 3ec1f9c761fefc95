//! Destroys connections without the kernel's help: with resets that bear the right numbers.
//!
//! A socket takes a reset only at exactly the sequence number it expects next (RFC 5961, section
//! 3.2), and nothing tells that number but the socket itself. So it is asked: a segment in its
//! peer's name with one byte that is out of its window has to be answered with an
//! acknowledgement (RFC 9293, section 3.10.7.4), which bears both the number expected and the number
//! that the peer expects. A connection that is being opened is asked with a SYN: the end that
//! opens it takes that for a simultaneous open and answers, the other end answers a SYN that is
//! not the first one as it does a byte out of its window. The answer is heard on its way out, and
//! a reset follows to both ends.
//!
//! The byte cannot reach the application. It is out of the window but for one try in a thousand,
//! and then its acknowledgement, as random, is not one that the socket takes; and what would be
//! taken is not delivered before the bytes that come before it, which the reset outruns. Linux
//! limits the rate of such answers, but not to segments with data (`tcp_oow_rate_limited`).
//!
//! While a connection carries bulk, its numbers may have moved on when the reset arrives, so every
//! later word of it brings another one. What counts is the kernel's table: a connection that is
//! still in it is asked again, or reported as a failure.
//!
//! The peer may have lost the reset among the segments that it had no room for. So once a socket
//! has ended its peer is asked too, in its name: one that is still there answers, and the kernel
//! here, which knows no such socket any more, answers that with the reset that fits. It is heard,
//! and the peer asked again, until nobody answers.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use foldhash::HashMap;

use super::diag::Diag;
use super::segment::{Flags, Heard, Segment, Voice};
use super::sniffer::{MOST, Sniffer};
use super::{Connection, Error, Failure, ListedSocket, Outcome, PATIENCE};

/// How long the answers to one round of probes are waited for. Over loopback they are there at
/// once, unless the application is just using the socket.
const ROUND: Duration = Duration::from_millis(10);
/// How often the peer of a connection that has ended is asked whether it is still there.
const FAREWELLS: usize = 8;
/// What each [`MOST`] connections have at least, however many there are.
const FAIR_SHARE: Duration = Duration::from_millis(20);

/// Resets connections, in time.
pub(super) fn reset(diag: &mut Diag, targets: &[ListedSocket]) -> Result<Vec<Outcome>, Error> {
    let end = Instant::now() + PATIENCE;
    let mut outcomes = Vec::with_capacity(targets.len());
    let mut left = targets.chunks(MOST);
    while let Some(chunk) = left.next() {
        let others = u32::try_from(left.len()).unwrap_or(u32::MAX);
        let share = end.saturating_duration_since(Instant::now()) / others.saturating_add(1);
        let until = Instant::now() + share.max(FAIR_SHARE);
        outcomes.extend(Attempt::new(chunk)?.carry_out(diag, until)?);
    }
    Ok(outcomes)
}

/// One connection's way to its end.
struct TargetSocket {
    target: ListedSocket,
    /// What it said last.
    heard: Option<Heard>,
    probes: u32,
    resets: u32,
    /// Whether it has not answered the last probe.
    silent: bool,
    /// Whether it said something since the last reset.
    fresh: bool,
    alive: bool,
    /// Whether it has ended and its peer may not know.
    missed: bool,
}

struct Attempt {
    sniffer: Sniffer,
    targets: Vec<TargetSocket>,
    /// By local and remote end.
    places: HashMap<(SocketAddr, SocketAddr), usize>,
    /// What was heard at once; kept to be filled again.
    heard: Vec<Heard>,
}

impl Attempt {
    fn new(targets: &[ListedSocket]) -> Result<Self, Error> {
        let target = |target: &ListedSocket| TargetSocket {
            target: *target,
            heard: None,
            probes: 0,
            resets: 0,
            silent: true,
            fresh: false,
            alive: true,
            missed: true,
        };
        let ends = |target: &ListedSocket| (target.connection.local, target.connection.remote);
        let places = targets.iter().enumerate();
        Ok(Self {
            sniffer: Sniffer::open(targets)?,
            targets: targets.iter().map(target).collect(),
            places: places.map(|(at, target)| (ends(target), at)).collect(),
            heard: Vec::new(),
        })
    }

    fn carry_out(mut self, diag: &mut Diag, until: Instant) -> Result<Vec<Outcome>, Error> {
        let failed = |source| Error::Packets {
            what: "listen to packets",
            source,
        };
        loop {
            let round = until.min(Instant::now() + ROUND);
            self.ask();
            while self.targets.iter().any(TargetSocket::is_silent) && Instant::now() < round {
                self.send_resets(round).map_err(failed)?;
            }
            self.look(diag)?;
            if !self.targets.iter().any(TargetSocket::is_pending) || Instant::now() >= until {
                break;
            }
            // Nobody is asked again before that, but a busy socket says something all the time.
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

    /// Asks every socket that is alive for its numbers.
    fn ask(&mut self) {
        for target in self.targets.iter_mut().filter(|target| target.is_pending()) {
            target.probes += 1;
            target.silent = true;
            attempted(self.sniffer.send(&target.probe()));
        }
    }

    /// Listens until somebody is heard, and sends resets to them.
    fn send_resets(&mut self, until: Instant) -> io::Result<()> {
        self.sniffer.listen(until, &mut self.heard)?;
        self.note();
        for target in self.targets.iter_mut().filter(|target| target.is_pending()) {
            if std::mem::take(&mut target.fresh) {
                target.send_resets(&self.sniffer);
            }
        }
        Ok(())
    }

    /// Makes sure that the peers of those that have ended know it. All are asked once, and again
    /// while there is time.
    fn notify_peers(&mut self, until: Instant) -> io::Result<()> {
        // What was said before the end is no answer.
        self.sniffer.drain(&mut self.heard);
        self.note();
        for _ in 0..FAREWELLS {
            let mut asked = false;
            for target in self.targets.iter_mut().filter(|target| !target.alive) {
                if std::mem::take(&mut target.missed) {
                    attempted(self.sniffer.send(&target.farewell()));
                    asked = true;
                }
            }
            if !asked {
                break;
            }
            let round = until.min(Instant::now() + ROUND);
            while Instant::now() < round {
                self.sniffer.listen(round, &mut self.heard)?;
                self.note();
            }
        }
        Ok(())
    }

    /// Notes the last word of each.
    fn note(&mut self) {
        for heard in &self.heard {
            let at = self.places.get(&(heard.from, heard.to)).copied();
            if let Some(at) = at
                && let Some(target) = self.targets.get_mut(at)
            {
                target.note(*heard);
            }
        }
    }

    /// Finds out who is still there.
    fn look(&mut self, diag: &mut Diag) -> Result<(), Error> {
        let pending = |target: &&mut TargetSocket| target.is_pending();
        let mut pending: Vec<&mut TargetSocket> = self.targets.iter_mut().filter(pending).collect();
        let wanted: Vec<Connection> = pending
            .iter()
            .map(|target| Connection {
                cookie: target.target.found.cookie.try_into().ok(),
                ..target.target.connection
            })
            .collect();
        for (target, found) in pending.iter_mut().zip(diag.find(&wanted)?) {
            match found {
                Some(found) => target.target.found = found,
                None => target.alive = false,
            }
        }
        Ok(())
    }
}

impl TargetSocket {
    /// Whether there is something left to do that can help.
    fn is_pending(&self) -> bool {
        self.alive && self.target.found.device == 0
    }

    fn is_silent(&self) -> bool {
        self.is_pending() && self.silent
    }

    /// A segment in the peer's name that the socket has to answer.
    fn probe(&self) -> Segment {
        let Connection { local, remote, .. } = self.target.connection;
        let (flags, data): (_, &'static [u8]) = if self.target.found.state.is_opening() {
            (Flags::SYN, &[])
        } else {
            (Flags::ACK, &[0])
        };
        Segment {
            from: remote,
            to: local,
            // Long past, where it is known what is expected.
            sequence: self
                .heard
                .map_or_else(rand::random, |heard| heard.expects.wrapping_sub(1 << 30)),
            acknowledges: if flags.has(Flags::ACK) {
                rand::random()
            } else {
                0
            },
            flags,
            data,
        }
    }

    /// A segment in the socket's own name that its peer has to answer.
    fn farewell(&self) -> Segment {
        let Connection { local, remote, .. } = self.target.connection;
        Segment {
            from: local,
            to: remote,
            sequence: self
                .heard
                .map_or_else(rand::random, |heard| heard.next.wrapping_sub(1 << 30)),
            acknowledges: rand::random(),
            flags: Flags::ACK,
            data: &[0],
        }
    }

    /// Remembers the furthest numbers; what is sent again bears earlier ones.
    fn note(&mut self, heard: Heard) {
        if heard.voice == Voice::Nobody {
            // Its peer has just been told so, if it had room.
            self.missed = true;
            return;
        }
        let later = |new: u32, old: u32| {
            if new.wrapping_sub(old) < 1 << 31 {
                new
            } else {
                old
            }
        };
        self.silent = false;
        self.fresh = true;
        self.heard = Some(self.heard.map_or(heard, |last| Heard {
            next: later(heard.next, last.next),
            expects: later(heard.expects, last.expects),
            ..heard
        }));
    }

    /// Sends both ends the reset that fits what was heard last.
    fn send_resets(&mut self, sniffer: &Sniffer) {
        let Some(heard) = self.heard else { return };
        self.resets += 1;
        let reset = Segment {
            from: heard.to,
            to: heard.from,
            sequence: heard.expects,
            acknowledges: heard.next,
            flags: Flags::RST.and(Flags::ACK),
            data: &[],
        };
        attempted(sniffer.send(&reset));
        let reset = Segment {
            from: heard.from,
            to: heard.to,
            sequence: heard.next,
            acknowledges: heard.expects,
            flags: Flags::RST.and(Flags::ACK),
            data: &[],
        };
        attempted(sniffer.send(&reset));
    }

    fn outcome(self) -> Outcome {
        let device = self.target.found.device;
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

/// A segment that cannot be sent is one that is not answered, and counts as that.
fn attempted(sent: io::Result<()>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "cannot send a segment to end a connection");
    }
}
