//! Who comes, what for, and what is told of it: what decides, and what only telemetry hears.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::claimed_client;
use mesh::Authority;
use mesh::View;
use mesh::inbound::backed_service;
use mesh::inbound::{TunnelTarget, client_address, delivery_address};
use mesh::{Identity, Service, Workload};
use tunnel::hbone::Baggage;

/// Who comes, and what for.
pub(super) struct InboundCaller {
    /// The peer of the TCP connection: the client itself, or whoever speaks for it.
    pub(super) peer: SocketAddr,
    /// Where it came in.
    pub(super) at: SocketAddr,
    /// Its tunnel; none for plaintext.
    pub(super) tunnel: Option<TunnelPeer>,
}

/// What the peer of a tunnel says.
pub(super) struct TunnelPeer {
    /// Who it proved to be.
    pub(super) identity: Identity,
    /// What it asks for.
    pub(super) authority: Authority,
    /// For whom it asks, if it says so.
    pub(super) forwarded: Option<IpAddr>,
    /// Which service was dialled, if it says so; for telemetry only.
    pub(super) host: Option<String>,
    /// What it says about the client; for telemetry only.
    pub(super) baggage: Baggage,
}

impl InboundCaller {
    pub(super) fn identity(&self) -> Option<&Identity> {
        self.tunnel.as_ref().map(|tunnel| &tunnel.identity)
    }

    /// What is asked for, as it was said.
    pub(super) fn authority(&self) -> Authority {
        let said = self.tunnel.as_ref().map(|tunnel| tunnel.authority.clone());
        said.unwrap_or(Authority::Address(self.at))
    }

    /// For whom the peer says it speaks, if it is somebody else. Nearly everybody names themselves,
    /// a waypoint's proxy that speaks for nobody too.
    pub(super) fn named(&self) -> Option<IpAddr> {
        let named = self.tunnel.as_ref()?.forwarded?;
        (named != self.peer.ip()).then_some(named)
    }

    /// Whose connection it is. The port of a client that somebody else names is not known.
    pub(super) fn client(&self, workload: Option<&Workload>, view: &View) -> SocketAddr {
        let said = (self.identity(), self.named());
        let client =
            workload.map(|workload| client_address(self.peer.ip(), said, workload, &view.mesh));
        match client.filter(|client| *client != self.peer.ip()) {
            Some(client) => SocketAddr::new(client, 0),
            None => self.peer,
        }
    }

    /// What telemetry is told of the client.
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
        // A name is asked for through the gateway of a network, and then it is the gateway that is at
        // the peer's address.
        let by_name = matches!(tunnel.authority, Authority::Host(..));
        let gateway =
            |found: &Workload| by_name && client == self.peer && found.identity != tunnel.identity;
        let found = found.filter(|found| !gateway(found)).cloned();
        found.or_else(|| claimed_client::client(&tunnel.baggage, &tunnel.identity))
    }

    /// The service that it was meant for, as far as anybody can tell.
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
