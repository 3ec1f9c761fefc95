//! The client of an inbound connection: the facts that authorization uses, and those for telemetry
//! only.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::super::connection::Connection;
use super::claimed_client;
use mesh::Authority;
use mesh::View;
use mesh::inbound::backed_service;
use mesh::inbound::{ClientReport, TunnelTarget, client_address, delivery_address};
use mesh::{Identity, Service, Workload};
use tunnel::hbone::Baggage;

/// The peer and the request of an inbound connection.
pub(super) struct InboundCaller {
    /// The connection. In a tunnel its client and its destination are those of the TCP connection
    /// that carries the tunnel: see [`Self::peer`] and [`Self::local`].
    pub(super) connection: Connection,
    /// The tunnel; `None` for plaintext.
    pub(super) tunnel: Option<TunnelPeer>,
}

/// The peer of a tunnel and its request.
pub(super) struct TunnelPeer {
    /// The identity that the peer proved.
    pub(super) identity: Identity,
    /// The requested authority.
    pub(super) authority: Authority,
    /// The client's address as the peer states it.
    pub(super) forwarded: Option<IpAddr>,
    /// The dialled service as the peer states it; for telemetry only.
    pub(super) host: Option<String>,
    /// The client's workload as the peer states it; for telemetry only.
    pub(super) baggage: Baggage,
}

impl InboundCaller {
    /// The peer of the TCP connection: the client, or a proxy that connects on its behalf. The
    /// client that policies match is [`Self::client`].
    pub(super) const fn peer(&self) -> SocketAddr {
        self.connection.client
    }

    /// The local address of the TCP connection.
    pub(super) const fn local(&self) -> SocketAddr {
        self.connection.destination
    }

    pub(super) fn identity(&self) -> Option<&Identity> {
        self.tunnel.as_ref().map(|tunnel| &tunnel.identity)
    }

    /// The requested authority as it was received.
    pub(super) fn authority(&self) -> Authority {
        let requested = self.tunnel.as_ref().map(|tunnel| tunnel.authority.clone());
        requested.unwrap_or_else(|| Authority::Address(self.local()))
    }

    /// The client's address as the peer states it, if it differs from the peer's address. Most
    /// peers state their own address, and so does a waypoint's proxy for its own connections.
    pub(super) fn stated_client(&self) -> Option<IpAddr> {
        let stated = self.tunnel.as_ref()?.forwarded?;
        (stated != self.peer().ip()).then_some(stated)
    }

    /// The client's address. The port is 0 for a client that the peer states, because its port is
    /// unknown.
    pub(super) fn client(&self, workload: Option<&Workload>, view: &View) -> SocketAddr {
        let stated = ClientReport {
            identity: self.identity(),
            address: self.stated_client(),
        };
        let client =
            workload.map(|workload| client_address(self.peer().ip(), stated, workload, &view.mesh));
        match client.filter(|client| *client != self.peer().ip()) {
            Some(client) => SocketAddr::new(client, 0),
            None => self.peer(),
        }
    }

    /// The client's workload, for telemetry.
    pub(super) fn source(
        &self,
        client: SocketAddr,
        network: &str,
        view: &View,
    ) -> Option<Arc<Workload>> {
        let found = view.mesh.workload_by_address(network, client.ip());
        let Some(tunnel) = &self.tunnel else {
            return found.cloned();
        };
        // Requests for a name come through a network gateway. The workload at the peer's address is
        // then the gateway and not the client.
        let by_name = matches!(tunnel.authority, Authority::Host(..));
        let gateway = |found: &Workload| {
            by_name && client == self.peer() && found.identity != tunnel.identity
        };
        let found = found.filter(|found| !gateway(found)).cloned();
        found.or_else(|| claimed_client::client(&tunnel.baggage, &tunnel.identity))
    }

    /// The service that the client dialled, as far as it can be determined.
    pub(super) fn service(
        &self,
        target: Option<&TunnelTarget>,
        workload: Option<&Workload>,
        view: &View,
    ) -> Option<Arc<Service>> {
        let (target, workload) = (target?, workload?);
        if let Some(service) = &target.service {
            return Some(service.clone());
        }
        let (host, to) = match &self.tunnel {
            Some(tunnel) => (
                tunnel.host.as_deref(),
                delivery_address(workload, target.destination, false),
            ),
            None => (None, target.destination),
        };
        backed_service(workload, &view.mesh, host, to.port())
    }
}

#[cfg(test)]
mod tests;
