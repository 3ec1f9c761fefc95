//! What ends the process from outside.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end the process.
pub(super) struct Signals {
    terminate: Option<Signal>,
    interrupt: Option<Signal>,
}

impl Signals {
    pub(super) fn listen() -> Self {
        Self {
            terminate: listen_for(SignalKind::terminate()),
            interrupt: listen_for(SignalKind::interrupt()),
        }
    }

    /// Waits for one of them. Safe to cancel.
    pub(super) async fn end(&mut self) {
        tokio::select! {
            () = told(self.terminate.as_mut()) => {}
            () = told(self.interrupt.as_mut()) => {}
        }
    }
}

fn listen_for(kind: SignalKind) -> Option<Signal> {
    signal(kind)
        .inspect_err(|error| tracing::error!(%error, "cannot listen for a signal"))
        .ok()
}

async fn told(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}
