//! One timer a connection: is the peer alive, and does anybody still use the connection?
//!
//! Nothing is done while frames flow; the timer looks back when it fires. A peer that was
//! silent for the keepalive's interval gets a PING, and any byte from it counts as the answer.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

use super::config::Keepalive;

/// What the timer asks of the connection it watches.
pub(crate) trait Watched {
    /// Whether bytes came in since the last question.
    fn take_heard(&mut self) -> bool;
    /// Since when no tunnel is open; `None` while one is.
    fn idle_since(&mut self) -> Option<Instant>;
    /// Whether the peer's SETTINGS have come.
    fn is_settled(&self) -> bool;
}

/// What the timer found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alarm {
    /// Nobody has used the connection for long enough.
    Idle,
    /// The peer has not answered for this long.
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
            // Fires at once, to set itself.
            sleep: Box::pin(tokio::time::sleep_until(now)),
            keepalive,
            silent_since: now,
            pinged: None,
            idle_limit,
            settle_by: Some((after(now, settle_within), settle_within)),
        }
    }

    /// From here on an idle connection is given only this long.
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
            // A connection in use may fall idle right after: it is looked at again no later
            // than its release would then be due.
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

    /// The peer's SETTINGS must come in time.
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

    /// Pings a silent peer, and gives up on one that stays silent.
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
            // Takes the last answer, which h2 wants before it sends another. An error means
            // that the connection is closed, which its driver learns by itself; a PING still
            // unanswered on a line that is not silent needs no second one.
            let mut nobody = Context::from_waker(Waker::noop());
            drop(pings.poll_pong(&mut nobody));
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

/// `from + wait`, or far away when the setting is absurd.
fn after(from: Instant, wait: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 24 * 3600);
    from + wait.min(FAR)
}
