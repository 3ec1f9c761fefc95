//! Forwards the programs' log records to the proxy's log at debug level.

#![allow(
    unsafe_code,
    reason = "AsyncFd needs a promise about the watched descriptor"
)]

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use ztunnel_ebpf_types::CONFIG_LOG;

use super::{Error, Maps};

/// Forwards the programs' records to the `log` crate. While it exists, every decision about an
/// enrolled pod costs a record in a ring buffer. Dropping it ends the logging.
pub struct LogForwarder {
    logger: aya_log::EbpfLogger<&'static dyn log::Log>,
    maps: Arc<Maps>,
}

impl LogForwarder {
    /// Opens the ring buffer of the programs that were loaded together with this one.
    pub(super) fn open(maps: Arc<Maps>, program: u32) -> Result<Self, Error> {
        let logger = aya_log::EbpfLogger::init_from_id(program).map_err(|source| Error::Log {
            source: Box::new(source),
        })?;
        maps.configure(|config| config.flags |= CONFIG_LOG)?;
        Ok(Self { logger, maps })
    }

    /// Forwards the records so far.
    pub fn flush(&mut self) {
        self.logger.flush();
    }

    /// Forwards until it is dropped. Runs in a tokio runtime.
    ///
    /// # Errors
    /// When the ring buffer cannot be watched: the runtime has ended.
    pub async fn run(mut self) -> io::Result<()> {
        let ring = self.logger.as_fd().try_clone_to_owned()?;
        // SAFETY: the AsyncFd owns this descriptor, which no other owner closes.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(io::Error::from)?;
        loop {
            let mut guard = ring.readable().await?;
            self.logger.flush();
            guard.clear_ready();
        }
    }
}

impl Drop for LogForwarder {
    fn drop(&mut self) {
        // If this fails, the ring buffer fills up and later records are dropped, without harm.
        drop(self.maps.configure(|config| config.flags &= !CONFIG_LOG));
    }
}

impl std::fmt::Debug for LogForwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogForwarder").finish_non_exhaustive()
    }
}
