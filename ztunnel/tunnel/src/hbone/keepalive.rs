//! The watchdog of a connection: one timer that detects a dead peer and an unused connection.
//!
//! Frames do not reset the timer; when it fires, it checks the activity since the last check. A
//! peer that was silent for the keepalive's interval gets a PING; any byte from the peer counts as
//! an answer.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

use super::config::Keepalive;

/// The activity of a connection, as the watchdog checks it.
pub(crate) trait Activity {
    /// Whether bytes arrived since the last check.
    fn take_received(&mut self) -> bool;
    /// The time since which no tunnel is open; `None` while one is.
    fn idle_since(&mut self) -> Option<Instant>;
    /// Whether the peer's SETTINGS have arrived.
    fn has_settings(&self) -> bool;
}

/// Why the watchdog fired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alarm {
    /// The connection was unused for the configured time.
    Idle,
    /// The peer has sent nothing for this time.
    Dead(Duration),
}

/// The timer of a connection.
pub(crate) struct Watchdog {
    sleep: Pin<Box<Sleep>>,
    keepalive: Option<(Keepalive, PingPong)>,
    silent_since: Instant,
    pinged: Option<Instant>,
    idle_limit: Duration,
    settings_deadline: Option<(Instant, Duration)>,
}

impl Watchdog {
    pub(crate) fn new(
        keepalive: Option<(Keepalive, PingPong)>,
        idle_limit: Duration,
        settings_timeout: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            // Fires at once, and then sets the first deadline.
            sleep: Box::pin(tokio::time::sleep_until(now)),
            keepalive,
            silent_since: now,
            pinged: None,
            idle_limit,
            settings_deadline: Some((after(now, settings_timeout), settings_timeout)),
        }
    }

    /// Shortens the idle limit from now on.
    pub(crate) fn shorten_idle_limit(&mut self, idle_limit: Duration) {
        self.idle_limit = idle_limit;
        self.sleep.as_mut().reset(Instant::now());
    }

    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        activity: &mut impl Activity,
    ) -> Poll<Alarm> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let now = Instant::now();
            let idle = activity
                .idle_since()
                .map(|since| after(since, self.idle_limit));
            if idle.is_some_and(|at| at <= now) {
                return Poll::Ready(Alarm::Idle);
            }
            // A connection in use may become idle right after this check, so the next check is due
            // one idle limit from now at the latest.
            let mut next = idle.unwrap_or_else(|| after(now, self.idle_limit));
            for check in [
                self.check_peer_settings(now, activity),
                self.check_peer(now, activity),
            ] {
                match check {
                    Ok(at) => next = at.map_or(next, |at| next.min(at)),
                    Err(silence) => return Poll::Ready(Alarm::Dead(silence)),
                }
            }
            self.sleep.as_mut().reset(next);
        }
    }

    /// The time of the next check, or the limit that a peer without SETTINGS has exceeded.
    fn check_peer_settings(
        &mut self,
        now: Instant,
        activity: &impl Activity,
    ) -> Result<Option<Instant>, Duration> {
        let Some((deadline, timeout)) = self.settings_deadline else {
            return Ok(None);
        };
        if activity.has_settings() {
            self.settings_deadline = None;
            return Ok(None);
        }
        if deadline <= now {
            Err(timeout)
        } else {
            Ok(Some(deadline))
        }
    }

    /// Pings a silent peer. Returns the time of the next check, or how long a peer that did not
    /// answer has been silent.
    fn check_peer(
        &mut self,
        now: Instant,
        activity: &mut impl Activity,
    ) -> Result<Option<Instant>, Duration> {
        let Some((keepalive, pings)) = &mut self.keepalive else {
            return Ok(None);
        };
        if activity.take_received() {
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
