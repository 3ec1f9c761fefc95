//! What the reports and the connection table say about a connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::connection::Connection;
use mesh::route::Route;
use mesh::{Authority, Identity, Service, Workload};
use telemetry::Reporter;

/// The tunnel of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Tunnelled {
    /// The tunnel's far end: the destination, its waypoint or a network gateway.
    pub(crate) at: SocketAddr,
    /// The authority of its CONNECT request.
    pub(crate) authority: Authority,
}

/// What is known about a connection when its report is opened.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionInfo {
    /// Whether this node is the source or the destination.
    pub(crate) reporter: Reporter,
    /// When it was accepted.
    pub(crate) began: Instant,
    /// The client's address.
    pub(crate) client: SocketAddr,
    /// The address that the client dialled, if known.
    pub(crate) dialled: SocketAddr,
    /// The client, if the mesh knows it.
    pub(crate) source: Option<Arc<Workload>>,
    /// The client's identity, if mutual TLS proves it.
    pub(crate) source_identity: Option<Identity>,
    /// The destination: the chosen backend, or the dialled address.
    pub(crate) destination: SocketAddr,
    /// The tunnel, if the connection uses one.
    pub(crate) hbone: Option<Tunnelled>,
    /// The server, if the mesh knows it.
    pub(crate) workload: Option<Arc<Workload>>,
    /// The server's identity, if mutual TLS proves it.
    pub(crate) destination_identity: Option<Identity>,
    /// The dialled service, if there is one.
    pub(crate) service: Option<Arc<Service>>,
}

impl ConnectionInfo {
    /// A connection of which only its addresses and its time of accept are known.
    pub(super) const fn new(reporter: Reporter, connection: &Connection) -> Self {
        Self {
            reporter,
            began: connection.accepted,
            client: connection.client,
            dialled: connection.destination,
            source: None,
            source_identity: None,
            destination: connection.destination,
            hbone: None,
            workload: None,
            destination_identity: None,
            service: None,
        }
    }

    /// An outbound connection of a workload that takes a route.
    pub(super) fn routed(connection: &Connection, source: &Arc<Workload>, route: &Route) -> Self {
        let info = Self {
            source: Some(source.clone()),
            ..Self::new(Reporter::Source, connection)
        };
        match route {
            Route::Passthrough {
                to,
                workload,
                service,
            } => Self {
                destination: *to,
                workload: workload.clone(),
                service: service.clone(),
                ..info
            },
            Route::Direct {
                to,
                workload,
                service,
                ..
            } => Self {
                destination: *to,
                source_identity: Some(source.identity.clone()),
                destination_identity: Some(workload.identity.clone()),
                workload: Some(workload.clone()),
                service: service.clone(),
                ..info
            },
            // The next hop that gets the application's bytes. As in Istio, the workload and its
            // identity are those of the waypoint or gateway, and the service is the dialled one.
            Route::Tunnel(hop) => Self {
                destination: match hop.authority {
                    Authority::Address(to) => to,
                    Authority::Host(..) => info.destination,
                },
                hbone: Some(Tunnelled {
                    at: hop.at,
                    authority: hop.authority.clone(),
                }),
                source_identity: Some(source.identity.clone()),
                destination_identity: hop.expected.first().cloned(),
                workload: Some(hop.workload.clone()),
                service: hop.service.clone(),
                ..info
            },
        }
    }
}
