//! The signals that stop the process.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT; a signal that cannot be listened for is none.
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

    /// Waits for the next signal. Safe to cancel.
    pub(super) async fn end(&mut self) {
        tokio::select! {
            () = receive(self.terminate.as_mut()) => {}
            () = receive(self.interrupt.as_mut()) => {}
        }
    }
}

fn listen_for(kind: SignalKind) -> Option<Signal> {
    signal(kind)
        .inspect_err(
            |error| tracing::error!(%error, "cannot listen for a signal that stops the process"),
        )
        .ok()
}

async fn receive(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}
