//! The admin, metrics and readiness ports. While one process takes over from another in the same
//! network namespace, only one of them can hold the ports.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::deadline::until;
use crate::handover::StandbyPorts;
use admin::{self, Bound, Servers, Sources};

/// How often the ports are tried while another process holds them.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// How often the wait is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What to do when another process holds the admin, metrics and readiness ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPortConflict {
    /// Do not start: a second proxy would be a mistake.
    Fail,
    /// Wait until that process has handed over: this one replaces it.
    Wait,
}

/// Binds the ports; none if they are in use and the process may wait for them.
pub(super) fn bind(
    config: &admin::Config,
    on_port_conflict: OnPortConflict,
) -> Result<Option<Bound>, admin::Error> {
    match admin::bind(config) {
        Ok(bound) => Ok(Some(bound)),
        Err(error) if on_port_conflict == OnPortConflict::Wait && error.is_in_use() => {
            tracing::info!("{error}: waiting for it to hand over");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The servers behind the ports, or what is needed to start them.
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
        last_logged: Instant,
    },
}

impl AdminListeners {
    /// Serves on the bound ports; without them it tries to bind from now on.
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
                last_logged: now,
            },
        };
        Self {
            config,
            stopping,
            state,
        }
    }

    /// Whether the active process has to give up its ports for this one.
    pub(super) const fn standby_ports(&self) -> StandbyPorts {
        match self.state {
            State::Open(_) => StandbyPorts::Own,
            State::Closed { .. } => StandbyPorts::Wanted,
        }
    }

    /// Waits until it is time to try the ports again. Safe to cancel.
    pub(super) async fn due(&self) {
        until(match &self.state {
            State::Open(_) => None,
            State::Closed { next, .. } => Some(*next),
        })
        .await;
    }

    /// Tries to bind the ports, and serves on them.
    pub(super) fn try_bind(&mut self) {
        let State::Closed {
            sources,
            next,
            last_logged,
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
                *next = Instant::now() + RETRY_INTERVAL;
                if last_logged.elapsed() >= LOG_INTERVAL {
                    *last_logged = Instant::now();
                    tracing::warn!(%error, "still waiting for the previous process to release the admin, metrics and readiness ports");
                }
            }
        }
    }

    /// Waits until the servers have stopped.
    pub(super) async fn finished(self) {
        if let State::Open(servers) = self.state {
            servers.finished().await;
        }
    }
}
