//! Waiting for an optional point in time.

use std::time::Instant;

/// Sleeps until `time`. `None`: never returns.
pub(crate) async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
