//! The reports of an outbound connection.

use super::super::connection::Connection;
use super::super::connection_info::ConnectionInfo;
use super::super::relay::Ended;
use super::super::report::{ConnectionReport, Failure};
use super::super::worker_state::Reports;
use super::decide::Decided;
use mesh::inbound::backed_service;
use mesh::route::Route;
use telemetry::{Reporter, Series};

/// The reports of one connection. A connection to a pod of this node without a tunnel is reported
/// at both ends, as if each pod had its own proxy.
pub(super) struct ConnectionReports {
    source: ConnectionReport,
    destination: Option<ConnectionReport>,
}

impl ConnectionReports {
    /// Opens the reports of a connection whose route is decided.
    pub(super) fn open(reports: &Reports, connection: &Connection, decided: &Decided) -> Self {
        let info = ConnectionInfo::routed(connection, &decided.source, &decided.routed.route);
        let is_direct = matches!(decided.routed.route, Route::Direct { .. });
        let at_destination = is_direct.then(|| ConnectionInfo {
            reporter: Reporter::Destination,
            service: info.workload.as_deref().and_then(|workload| {
                let hostname = info.service.as_ref().map(|service| &*service.hostname);
                let port = info.destination.port();
                backed_service(workload, &decided.view.mesh, hostname, port)
            }),
            ..info.clone()
        });
        let open = |info| ConnectionReport::open(reports, connection.id, info);
        Self {
            source: open(info),
            destination: at_destination.map(open),
        }
    }

    /// The counters that the relay increments.
    pub(super) fn series(&self) -> &Series {
        self.source.series()
    }

    /// Ends the reports after a relay.
    pub(super) fn end(self, ended: &Ended) {
        if let Some(destination) = self.destination {
            destination.end_beside(ended);
        }
        self.source.end(ended);
    }

    /// Ends the reports of a connection that failed before any relay.
    pub(super) fn fail(self, failure: &dyn Failure) {
        if let Some(destination) = self.destination {
            destination.fail(failure);
        }
        self.source.fail(failure);
    }
}
