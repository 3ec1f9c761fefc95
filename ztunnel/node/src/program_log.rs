//! The kernel programs' own log. It costs a record for every decision, so it is on only while the
//! log filter passes debug records of the programs.

use std::sync::Arc;
use std::time::Duration;

use crate::bpf::Kernel;

/// How often the filter is checked; it can change while the process runs.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Forwards the log while the filter passes it. Never returns.
pub(super) async fn follow(kernel: Arc<Kernel>) {
    loop {
        if is_enabled() {
            match kernel.log_forwarder() {
                Ok(forwarder) => tokio::select! {
                    ended = forwarder.run() => {
                        tracing::error!(?ended, "the log of the kernel programs has ended");
                    }
                    () = until_disabled() => {}
                },
                Err(error) => tracing::error!(%error, "cannot open the log of the kernel programs"),
            }
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

fn is_enabled() -> bool {
    tracing::enabled!(target: "ztunnel_ebpf", tracing::Level::DEBUG)
}

async fn until_disabled() {
    while is_enabled() {
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}
