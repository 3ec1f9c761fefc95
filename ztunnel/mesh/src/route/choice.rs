//! Choosing one backend of a service: who may be chosen, who is nearest, and the dice.
//!
//! Passes over the endpoints and no allocation: the first finds the best rank, the next the sum of
//! its weights, the last walks to the one that the dice hit.

use std::net::SocketAddr;
use std::sync::Arc;

use super::RouteError;
use super::place::{Reachable, Wanted};
use crate::{
    Endpoint, HealthPolicy, HealthStatus, LoadBalancing, LoadBalancingMode, RoutingScope, Service,
    Workload,
};

/// What a backend is chosen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To serve the connection.
    Backend,
    /// To stand before others: one that an application tunnel leads to needs no port of its own.
    Waypoint,
    /// To let the connection into another network, in which it may stand itself.
    NetworkGateway,
}

/// One choice: for whom, of which service, on which port.
pub(super) struct BackendChoice<'a> {
    pub(super) source: &'a Workload,
    pub(super) service: &'a Arc<Service>,
    pub(super) endpoints: &'a [Endpoint],
    /// The port of the service that was dialled.
    pub(super) port: u16,
    pub(super) purpose: Purpose,
    pub(super) wanted: Wanted<'a>,
}

/// One who may be chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) workload: &'a Arc<Workload>,
    pub(super) place: Reachable<'a>,
    /// The port at that place.
    pub(super) port: u16,
    /// Higher is nearer.
    rank: usize,
}

impl Candidate<'_> {
    /// Where it is, if it needs no name to be resolved and no gateway.
    pub(super) fn at(&self) -> Option<SocketAddr> {
        match self.place {
            Reachable::At(address) => Some(SocketAddr::new(address, self.port)),
            Reachable::Named(_) | Reachable::Beyond => None,
        }
    }

    fn weight(&self) -> u64 {
        u64::from(self.workload.capacity)
    }
}

impl<'a> BackendChoice<'a> {
    /// The one that the dice hit; one of `except` only where nobody else is as near.
    ///
    /// # Errors
    /// Says why nobody could be chosen.
    pub(super) fn pick(
        &self,
        random: u64,
        except: &[SocketAddr],
    ) -> Result<Candidate<'a>, RouteError> {
        let nearest = self.nearest();
        let others = |to: &Candidate<'_>| !to.at().is_some_and(|at| except.contains(&at));
        self.roll(nearest, random, others)
            .or_else(|| self.roll(nearest, random, |_| true))
            .ok_or_else(|| self.explain())
    }

    fn roll(
        &self,
        nearest: Option<usize>,
        random: u64,
        counts: impl Fn(&Candidate<'_>) -> bool,
    ) -> Option<Candidate<'a>> {
        let of_rank = || self.ranked(nearest).filter(&counts);
        let mut left = random.checked_rem(of_rank().map(|each| each.weight()).sum())?;
        for candidate in of_rank() {
            if left < candidate.weight() {
                return Some(candidate);
            }
            left -= candidate.weight();
        }
        None
    }

    /// Those of whom one is chosen.
    pub(super) fn best(&self) -> impl Iterator<Item = Candidate<'a>> {
        self.ranked(self.nearest())
    }

    fn nearest(&self) -> Option<usize> {
        self.candidates().map(|candidate| candidate.rank).max()
    }

    fn ranked(&self, rank: Option<usize>) -> impl Iterator<Item = Candidate<'a>> {
        self.candidates()
            .filter(move |candidate| Some(candidate.rank) == rank)
    }

    /// Those who may be chosen.
    fn candidates(&self) -> impl Iterator<Item = Candidate<'a>> {
        self.endpoints.iter().filter_map(|endpoint| {
            let workload = &endpoint.workload;
            if !self.is_willing(endpoint) {
                return None;
            }
            Some(Candidate {
                workload,
                place: self.place(workload)?,
                port: self.target(endpoint)?,
                rank: self.rank(workload)?,
            })
        })
    }

    fn place(&self, workload: &'a Workload) -> Option<Reachable<'a>> {
        let near = workload.network == self.source.network;
        if near || self.purpose == Purpose::NetworkGateway {
            return self.wanted.place(workload);
        }
        // Without a gateway nothing leads there: its addresses are somebody else's here.
        workload.network_gateway.as_ref().map(|_| Reachable::Beyond)
    }

    fn explain(&self) -> RouteError {
        let service = self.service.key();
        let is_willing = |endpoint: &&Endpoint| self.is_willing(endpoint);
        let willing = || self.endpoints.iter().filter(is_willing);
        let near = |endpoint: &&Endpoint| endpoint.workload.network == self.source.network;
        let lost = |e: &Endpoint| self.place(&e.workload).is_none();
        match willing().next() {
            Some(far) if !willing().any(|endpoint| near(&endpoint)) && willing().all(lost) => {
                RouteError::NoNetworkGateway {
                    service,
                    network: far.workload.network.clone(),
                    own: self.source.network.clone(),
                }
            }
            Some(_) if willing().all(lost) => RouteError::NoAddress { service },
            _ => RouteError::NoHealthyBackend {
                service,
                port: self.port,
                endpoints: self.endpoints.len(),
            },
        }
    }

    /// Healthy enough, with a capacity and a port.
    fn is_willing(&self, endpoint: &Endpoint) -> bool {
        let policy = self
            .balancing()
            .map_or(HealthPolicy::OnlyHealthy, |b| b.health_policy);
        let healthy =
            policy == HealthPolicy::AllowAll || endpoint.workload.status == HealthStatus::Healthy;
        healthy && endpoint.workload.capacity > 0 && self.target(endpoint).is_some()
    }

    /// The endpoint's own port goes before the service's.
    fn target(&self, endpoint: &Endpoint) -> Option<u16> {
        let given = |port: &u16| *port != 0;
        let own = endpoint.ports.get(&self.port).copied().filter(given);
        let common = || self.service.ports.get(&self.port).copied().filter(given);
        // The proxy before it takes the tunnel, and hands it on to the application's own port.
        let tunnelled = || {
            let told = endpoint.workload.application_tunnel.is_some();
            (self.purpose == Purpose::Waypoint && told).then_some(self.port)
        };
        own.or_else(common).or_else(tunnelled)
    }

    fn rank(&self, workload: &Workload) -> Option<usize> {
        let Some(balancing) = self.balancing() else {
            return Some(0);
        };
        let preferences = &balancing.routing_preferences;
        let matching = preferences
            .iter()
            .take_while(|scope| self.is_near(workload, **scope))
            .count();
        match balancing.mode {
            LoadBalancingMode::Standard | LoadBalancingMode::Passthrough => Some(0),
            LoadBalancingMode::Strict => (matching == preferences.len()).then_some(0),
            LoadBalancingMode::Failover => Some(matching),
        }
    }

    fn is_near(&self, workload: &Workload, scope: RoutingScope) -> bool {
        let (here, there) = (self.source, workload);
        match scope {
            RoutingScope::Region => here.locality.region == there.locality.region,
            RoutingScope::Zone => here.locality.zone == there.locality.zone,
            RoutingScope::Subzone => here.locality.subzone == there.locality.subzone,
            RoutingScope::Node => here.node == there.node,
            RoutingScope::Cluster => here.cluster_id == there.cluster_id,
            RoutingScope::Network => here.network == there.network,
        }
    }

    fn balancing(&self) -> Option<&LoadBalancing> {
        self.service.load_balancing.as_ref()
    }
}
