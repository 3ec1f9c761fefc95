//! The kernel programs' own log: it costs a record for every decision, so it is on only while
//! the log's filter lets debug records of the programs through.

use std::sync::Arc;
use std::time::Duration;

use crate::bpf::Kernel;

/// How often the filter is looked at; it can change while the process runs.
const LOOK: Duration = Duration::from_secs(2);

/// Follows the filter for ever.
pub(super) async fn follow(kernel: Arc<Kernel>) {
    loop {
        if wanted() {
            match kernel.log_forwarder() {
                Ok(forwarder) => tokio::select! {
                    ended = forwarder.run() => {
                        tracing::error!(?ended, "the kernel programs' log ended");
                    }
                    () = until_unwanted() => {}
                },
                Err(error) => tracing::error!(%error, "no log from the kernel programs"),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn wanted() -> bool {
    tracing::enabled!(target: "ztunnel_ebpf", tracing::Level::DEBUG)
}

async fn until_unwanted() {
    while wanted() {
        tokio::time::sleep(LOOK).await;
    }
}
