//! The access log: one line for each finished connection.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use tracing::Level;

use super::series::Reporter;
use mesh::{Identity, Service, Workload};

/// The tracing target of the access log; `/logging?level=access=off` silences it.
const TARGET: &str = "access";

/// One finished connection. Fields that are `None` are left out of the line.
#[derive(Clone, Copy)]
pub struct AccessLogEntry<'a> {
    /// The end of the connection at which this proxy is.
    pub reporter: Reporter,
    /// The client's address.
    pub source: SocketAddr,
    /// The client.
    pub source_workload: Option<&'a Workload>,
    /// The client's identity, if mutual TLS proved it.
    pub source_identity: Option<&'a Identity>,
    /// The address that the proxy connected to: the peer's HBONE port, or the destination
    /// itself.
    pub destination: SocketAddr,
    /// The CONNECT authority, if the connection was tunnelled.
    pub hbone: Option<&'a dyn fmt::Display>,
    /// The service that was dialled.
    pub service: Option<&'a Service>,
    /// The server.
    pub destination_workload: Option<&'a Workload>,
    /// The server's identity, if mutual TLS proved it.
    pub destination_identity: Option<&'a Identity>,
    /// Bytes that the workload of this node sent.
    pub bytes_sent: u64,
    /// Bytes that the workload of this node received.
    pub bytes_received: u64,
    /// The time from accept to the end.
    pub duration: Duration,
    /// The application that reset the connection, if one did: `client` or `server`.
    pub reset_by: Option<&'a dyn fmt::Display>,
    /// The error, if the connection failed for another reason than a reset by an application.
    pub error: Option<&'a dyn fmt::Display>,
}

impl AccessLogEntry<'_> {
    /// Whether a line would be written; if not, an entry need not be built.
    #[must_use]
    pub fn enabled() -> bool {
        tracing::enabled!(target: TARGET, Level::INFO)
            || tracing::enabled!(target: TARGET, Level::ERROR)
    }

    /// Writes the line: at `info`, or at `error` if the connection failed. If that level is off,
    /// nothing is formatted.
    pub fn log(&self) {
        // A macro, because the level is part of an event's static description: these are two
        // events with the same fields.
        macro_rules! event {
            ($level:expr) => {
                tracing::event!(
                    target: TARGET,
                    parent: None,
                    $level,
                    src.addr = %self.source,
                    src.workload = self.source_workload.map(|w| &*w.name),
                    src.namespace = self.source_workload.map(|w| &*w.namespace),
                    src.identity = self.source_identity.map(Identity::as_str),
                    dst.addr = %self.destination,
                    dst.hbone_addr = self.hbone.map(tracing::field::display),
                    dst.service = self.service.map(|s| &*s.hostname),
                    dst.workload = self.destination_workload.map(|w| &*w.name),
                    dst.namespace = self.destination_workload.map(|w| &*w.namespace),
                    dst.identity = self.destination_identity.map(Identity::as_str),
                    direction = self.reporter.direction(),
                    bytes_sent = self.bytes_sent,
                    bytes_recv = self.bytes_received,
                    duration = format!("{}ms", self.duration.as_millis()),
                    reset_by = self.reset_by.map(ToString::to_string),
                    error = self.error.map(ToString::to_string),
                    "connection complete"
                )
            };
        }
        match self.error {
            None => event!(Level::INFO),
            Some(_) => event!(Level::ERROR),
        }
    }
}

impl fmt::Debug for AccessLogEntry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLogEntry")
            .field("reporter", &self.reporter)
            .field("source", &self.source)
            .field("destination", &self.destination)
            .finish_non_exhaustive()
    }
}
