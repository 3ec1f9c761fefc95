//! One timer for each connection: it detects a dead peer and an unused connection.
//!
//! The timer causes no work while frames flow; it checks past activity when it fires. A peer that
//! was silent for the keepalive's interval gets a PING; any byte from the peer is an answer.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

use super::config::Keepalive;

/// The state of the connection that the timer checks.
pub(crate) trait Watched {
    /// Whether bytes arrived since the last check.
    fn take_heard(&mut self) -> bool;
    /// The time since which no tunnel is open; `None` while one is.
    fn idle_since(&mut self) -> Option<Instant>;
    /// Whether the peer's SETTINGS have arrived.
    fn is_settled(&self) -> bool;
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alarm {
    /// The connection was unused for the configured time.
    Idle,
    /// The peer has not answered for this time.
    Dead(Duration),
}

/// The timer of a connection.
pub(crate) struct Watchdog {
    sleep: Pin<Box<Sleep>>,
    keepalive: Option<(Keepalive, PingPong)>,
    silent_since: Instant,
    pinged: Option<Instant>,
    idle_limit: Duration,
    settle_by: Option<(Instant, Duration)>,
}

impl Watchdog {
    pub(crate) fn new(
        keepalive: Option<(Keepalive, PingPong)>,
        idle_limit: Duration,
        settle_within: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            // Fires at once, and then sets the first deadline.
            sleep: Box::pin(tokio::time::sleep_until(now)),
            keepalive,
            silent_since: now,
            pinged: None,
            idle_limit,
            settle_by: Some((after(now, settle_within), settle_within)),
        }
    }

    /// Shortens the idle limit from now on.
    pub(crate) fn hurry(&mut self, idle_limit: Duration) {
        self.idle_limit = idle_limit;
        self.sleep.as_mut().reset(Instant::now());
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, watched: &mut impl Watched) -> Poll<Alarm> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let now = Instant::now();
            let idle = watched
                .idle_since()
                .map(|since| after(since, self.idle_limit));
            if idle.is_some_and(|at| at <= now) {
                return Poll::Ready(Alarm::Idle);
            }
            // A connection in use may become idle right after this check, so the next check is no
            // later than its release would then be due.
            let mut next = idle.unwrap_or_else(|| after(now, self.idle_limit));
            for check in [self.settle(now, watched), self.listen(now, watched)] {
                match check {
                    Ok(at) => next = at.map_or(next, |at| next.min(at)),
                    Err(silence) => return Poll::Ready(Alarm::Dead(silence)),
                }
            }
            self.sleep.as_mut().reset(next);
        }
    }

    /// Requires the peer's SETTINGS within this time.
    fn settle(
        &mut self,
        now: Instant,
        watched: &impl Watched,
    ) -> Result<Option<Instant>, Duration> {
        let Some((by, within)) = self.settle_by else {
            return Ok(None);
        };
        if watched.is_settled() {
            self.settle_by = None;
            return Ok(None);
        }
        if by <= now { Err(within) } else { Ok(Some(by)) }
    }

    /// Pings a silent peer, and reports a peer that stays silent.
    fn listen(
        &mut self,
        now: Instant,
        watched: &mut impl Watched,
    ) -> Result<Option<Instant>, Duration> {
        let Some((keepalive, pings)) = &mut self.keepalive else {
            return Ok(None);
        };
        if watched.take_heard() {
            self.silent_since = now;
            self.pinged = None;
        }
        let ping_at = after(self.silent_since, keepalive.interval);
        if self.pinged.is_none() && ping_at <= now {
            // h2 accepts a new PING only after the last answer was read. An error means that the
            // connection is closed; the driver detects that by itself. If a PING is unanswered but
            // bytes arrive, no second one is needed.
            let mut no_wake = Context::from_waker(Waker::noop());
            drop(pings.poll_pong(&mut no_wake));
            drop(pings.send_ping(Ping::opaque()));
            self.pinged = Some(now);
        }
        match self.pinged {
            None => Ok(Some(ping_at)),
            Some(at) if after(at, keepalive.timeout) <= now => Err(now - self.silent_since),
            Some(at) => Ok(Some(after(at, keepalive.timeout))),
        }
    }
}

/// `from + wait`, or a time far in the future when the sum overflows.
fn after(from: Instant, wait: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 24 * 3600);
    from + wait.min(FAR)
}
