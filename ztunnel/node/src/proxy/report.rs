//! Step 6: one report per connection. It is opened when the connection has been authorized and
//! routed. Its end feeds the metrics and the access log in every case: a report that is dropped
//! without an end is recorded as a failure.

use std::net::SocketAddr;
use std::sync::Arc;

use super::connection::ConnectionId;
use super::connection_info::ConnectionInfo;
use super::connection_table::Entry;
use super::policy::Revoked;
use super::relay::{AppEnd, Broken, Ended};
use super::worker_state::Reports;
use telemetry::{
    AccessLogEntry, Reporter, ResponseFlag, SecurityPolicy, Series, SeriesKey, Telemetry,
};

/// A failure that ends a connection before or while it is carried.
pub(crate) trait Failure: std::error::Error {
    /// The response flag: the value of the metric's label.
    fn flag(&self) -> ResponseFlag;

    /// The application that reset the connection, if one of them did. The mesh has not failed then.
    fn reset_by(&self) -> Option<AppEnd> {
        None
    }
}

impl Failure for Broken {
    fn flag(&self) -> ResponseFlag {
        match self {
            Self::Revoked(revoked) => revoked.flag(),
            Self::Reset { .. } | Self::Tcp { .. } | Self::Tunnel { .. } => ResponseFlag::None,
        }
    }

    fn reset_by(&self) -> Option<AppEnd> {
        match self {
            Self::Reset { end } => Some(*end),
            _ => None,
        }
    }
}

impl Failure for Revoked {
    fn flag(&self) -> ResponseFlag {
        match self {
            Self::Denied(_) | Self::UnknownWorkload => ResponseFlag::Deny,
            Self::Certificate => ResponseFlag::CertRevoked,
        }
    }
}

/// The report of one connection.
#[derive(Debug)]
pub(crate) struct ConnectionReport {
    info: Arc<ConnectionInfo>,
    series: Arc<Series>,
    ended: bool,
    /// Keeps the connection in the connection table until the report is dropped.
    _entry: Entry,
}

impl ConnectionReport {
    /// Opens the report and counts the connection as opened.
    pub(super) fn open(reports: &Reports, id: ConnectionId, info: ConnectionInfo) -> Self {
        let series = series(&reports.telemetry, &info);
        series.opened.inc();
        let info = Arc::new(info);
        Self {
            _entry: reports.shard.add(id, info.clone()),
            info,
            series,
            ended: false,
        }
    }

    /// The counters that the relay increments.
    pub(crate) fn series(&self) -> &Series {
        &self.series
    }

    /// Ends the report of a connection whose bytes another report's series has counted.
    pub(crate) fn end_beside(self, ended: &Ended) {
        count(&self.series, ended);
        self.end(ended);
    }

    /// Ends the report after a relay.
    pub(crate) fn end(mut self, ended: &Ended) {
        match &ended.broken {
            None => self.close(ended, None),
            Some(broken) => self.close(ended, Some(broken)),
        }
    }

    /// Ends the report of a connection that failed before any relay.
    pub(crate) fn fail(mut self, failure: &dyn Failure) {
        self.close(&Ended::default(), Some(failure));
    }

    fn close(&mut self, ended: &Ended, failure: Option<&dyn Failure>) {
        self.ended = true;
        close(&self.info, self.info.client, &self.series, ended, failure);
    }
}

/// Counts the bytes of a connection that no relay has counted.
pub(crate) fn count(series: &Series, ended: &Ended) {
    series.received_bytes.add(ended.request);
    series.sent_bytes.add(ended.response);
}

/// Ends a connection: counts it in the metrics and writes the access log if it is enabled. `info`
/// may come from another connection of the client to the same server.
pub(crate) fn close(
    info: &ConnectionInfo,
    client: SocketAddr,
    series: &Series,
    ended: &Ended,
    failure: Option<&dyn Failure>,
) {
    match failure {
        None => series.closed.inc(),
        Some(failure) => series.failed(failure.flag()),
    }
    if !AccessLogEntry::enabled() {
        return;
    }
    let (bytes_sent, bytes_received) = match info.reporter {
        Reporter::Source => (ended.request, ended.response),
        Reporter::Destination => (ended.response, ended.request),
    };
    let reset_by = failure.and_then(Failure::reset_by);
    let chain = failure.filter(|_| reset_by.is_none()).map(Chain);
    let tunnel = info.hbone.as_ref();
    AccessLogEntry {
        reporter: info.reporter,
        source: client,
        source_workload: info.source.as_deref(),
        source_identity: info.source_identity.as_ref(),
        destination: tunnel.map_or(info.destination, |tunnel| tunnel.at),
        hbone: tunnel.map(|tunnel| &tunnel.authority as &dyn std::fmt::Display),
        service: info.service.as_deref(),
        destination_workload: info.workload.as_deref(),
        destination_identity: info.destination_identity.as_ref(),
        bytes_sent,
        bytes_received,
        duration: ended.after.unwrap_or_else(|| info.began.elapsed()),
        reset_by: reset_by.as_ref().map(|end| end as &dyn std::fmt::Display),
        error: chain.as_ref().map(|chain| chain as &dyn std::fmt::Display),
    }
    .log();
}

/// The series that the connection belongs to.
pub(crate) fn series(telemetry: &Telemetry, info: &ConnectionInfo) -> Arc<Series> {
    let security = match &info.hbone {
        Some(_) => SecurityPolicy::MutualTls,
        None => SecurityPolicy::Unknown,
    };
    telemetry.series(&SeriesKey {
        reporter: info.reporter,
        source: info.source.clone(),
        destination: info.workload.clone(),
        service: info.service.clone(),
        source_principal: info.source_identity.clone(),
        destination_principal: info.destination_identity.clone(),
        security,
    })
}

impl Drop for ConnectionReport {
    fn drop(&mut self) {
        if !self.ended {
            self.close(&Ended::default(), Some(&Abandoned));
        }
    }
}

/// The worker ended before the connection did.
#[derive(Debug, thiserror::Error)]
#[error("the proxy stopped before the connection ended")]
struct Abandoned;

impl Failure for Abandoned {
    fn flag(&self) -> ResponseFlag {
        ResponseFlag::None
    }
}

/// Formats an error in one line, followed by those of its causes that its own text leaves out.
struct Chain<'a>(&'a dyn Failure);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !said.contains(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::far_end::FarEnd;
    use super::*;
    use tunnel::hbone::{RevokedMark, TunnelError};

    fn broken(broken: Broken) -> Ended {
        Ended {
            broken: Some(broken),
            ..Ended::default()
        }
    }

    #[test]
    fn a_tunnel_that_broke_by_a_revocation_says_so_and_no_other_end_does() {
        let mark = RevokedMark::default();
        let tunnel = || broken(TunnelError::Finished.into());
        let flag = |ended: Ended| ended.broken.map(|broken| broken.flag());
        assert_eq!(
            flag(tunnel().explained(&mark, FarEnd::default())),
            Some(ResponseFlag::None)
        );
        mark.set();
        let revoked = tunnel().explained(&mark, FarEnd::default());
        let text = revoked.broken.as_ref().map(ToString::to_string);
        assert!(text.unwrap().contains("revoked"));
        assert_eq!(flag(revoked), Some(ResponseFlag::CertRevoked));
        let tcp = Broken::Tcp {
            end: AppEnd::Client,
            source: std::io::ErrorKind::TimedOut.into(),
        };
        assert_eq!(
            flag(broken(tcp).explained(&mark, FarEnd::default())),
            Some(ResponseFlag::None)
        );
        assert_eq!(
            flag(Ended::default().explained(&mark, FarEnd::default())),
            None
        );
        let policy = Revoked::UnknownWorkload;
        assert_eq!(flag(broken(policy.into())), Some(ResponseFlag::Deny));
    }

    #[test]
    fn a_reset_names_the_application_and_any_other_error_of_its_connection_is_a_failure() {
        use std::io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, TimedOut,
        };
        for kind in [ConnectionReset, BrokenPipe] {
            for end in [AppEnd::Client, AppEnd::Server] {
                let reset = Broken::tcp(end, kind.into());
                assert_eq!(reset.reset_by(), Some(end), "{kind}");
                assert_eq!(reset.to_string(), format!("the {end} reset the connection"));
            }
        }
        for kind in [TimedOut, HostUnreachable, ConnectionAborted] {
            let broken = Broken::tcp(AppEnd::Server, kind.into());
            assert_eq!(broken.reset_by(), None, "{kind}");
            let text = broken.to_string();
            assert!(
                text.starts_with("the connection to the server broke: "),
                "{text}"
            );
        }
    }
}
