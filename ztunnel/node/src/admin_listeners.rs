//! The ports of administration, metrics and readiness: whose they are while one process takes over
//! from another in the same network namespace.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::until;
use crate::handover::StandbyPorts;
use admin::{self, Bound, Servers, Sources};

/// How often ports that another process has are tried.
const KNOCK: Duration = Duration::from_millis(20);
/// How often somebody who waits says so.
const COMPLAIN: Duration = Duration::from_secs(10);

/// What to do where another process has the ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPortConflict {
    /// Two proxies would be a mistake: do not start.
    Fail,
    /// Wait until it has handed over: it is to be replaced.
    Wait,
}

/// Takes the ports; none where they are to be waited for.
pub(super) fn bind(
    config: &admin::Config,
    taken: OnPortConflict,
) -> Result<Option<Bound>, admin::Error> {
    match admin::bind(config) {
        Ok(bound) => Ok(Some(bound)),
        Err(error) if taken == OnPortConflict::Wait && error.is_in_use() => {
            tracing::info!("{error}: waiting for it to hand over");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The servers behind the ports, or what they would need.
#[derive(Debug)]
pub(super) struct AdminListeners {
    config: admin::Config,
    stopping: watch::Receiver<bool>,
    state: State,
}

#[derive(Debug)]
enum State {
    Open(Servers),
    Closed {
        sources: Option<Box<Sources>>,
        next: Instant,
        said: Instant,
    },
}

impl AdminListeners {
    /// Serves on ports that were bound; otherwise tries to have them from now on.
    pub(super) fn new(
        config: admin::Config,
        bound: Option<Bound>,
        sources: Sources,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let now = Instant::now();
        let state = match bound {
            Some(bound) => State::Open(bound.serve(sources, &stopping)),
            None => State::Closed {
                sources: Some(Box::new(sources)),
                next: now,
                said: now,
            },
        };
        Self {
            config,
            stopping,
            state,
        }
    }

    /// Whether the process in charge has to give up its ports for this one.
    pub(super) const fn standby_ports(&self) -> StandbyPorts {
        match self.state {
            State::Open(_) => StandbyPorts::Own,
            State::Closed { .. } => StandbyPorts::Wanted,
        }
    }

    /// Waits until the ports are to be tried again. Safe to cancel.
    pub(super) async fn due(&self) {
        until(match &self.state {
            State::Open(_) => None,
            State::Closed { next, .. } => Some(*next),
        })
        .await;
    }

    /// Tries to have the ports.
    pub(super) fn try_bind(&mut self) {
        let State::Closed {
            sources,
            next,
            said,
        } = &mut self.state
        else {
            return;
        };
        match admin::bind(&self.config) {
            Ok(bound) => {
                if let Some(sources) = sources.take() {
                    self.state = State::Open(bound.serve(*sources, &self.stopping));
                }
            }
            Err(error) => {
                *next = Instant::now() + KNOCK;
                if said.elapsed() >= COMPLAIN {
                    *said = Instant::now();
                    tracing::warn!(%error, "still waiting for the ports of the process before");
                }
            }
        }
    }

    /// Waits until the servers have ended.
    pub(super) async fn finished(self) {
        if let State::Open(servers) = self.state {
            servers.finished().await;
        }
    }
}
