//! Choosing one backend of a service: who may be chosen, who is nearest, and the dice.
//!
//! Passes over the endpoints and no allocation: the first finds the best rank, the next the sum of
//! its weights, the last walks to the one that the dice hit.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{
    Endpoint, HealthPolicy, HealthStatus, LoadBalancing, LoadBalancingMode, RouteError,
    RoutingScope, Service, Workload,
};

/// One choice: for whom, of which service, on which port.
pub(super) struct Choice<'a> {
    pub(super) source: &'a Workload,
    pub(super) service: &'a Service,
    /// What was dialled.
    pub(super) destination: SocketAddr,
    /// The service's own target port for the dialled one; 0 leaves it to the endpoints.
    pub(super) service_target: u16,
}

impl Choice<'_> {
    /// The chosen workload and the address to reach it at; one of `except` only where nobody else
    /// is as near.
    pub(super) fn pick<'e>(
        &self,
        endpoints: &'e [Endpoint],
        dice: u64,
        except: &[SocketAddr],
    ) -> Option<(&'e Arc<Workload>, SocketAddr)> {
        let best = self.nearest(endpoints)?;
        let others = |to: &SocketAddr| !except.contains(to);
        self.roll(endpoints, best, dice, others)
            .or_else(|| self.roll(endpoints, best, dice, |_| true))
    }

    fn roll<'e>(
        &self,
        endpoints: &'e [Endpoint],
        best: usize,
        dice: u64,
        counts: impl Fn(&SocketAddr) -> bool,
    ) -> Option<(&'e Arc<Workload>, SocketAddr)> {
        let of_rank = || {
            let candidates = self.candidates(endpoints);
            candidates.filter(|(rank, _, to)| *rank == best && counts(to))
        };
        let weight = |endpoint: &Endpoint| u64::from(endpoint.workload.capacity);
        let weights: u64 = of_rank().map(|(_, endpoint, _)| weight(endpoint)).sum();
        let mut left = dice.checked_rem(weights)?;
        for (_, endpoint, to) in of_rank() {
            if left < weight(endpoint) {
                return Some((&endpoint.workload, to));
            }
            left -= weight(endpoint);
        }
        None
    }

    /// Those of whom one is chosen.
    pub(super) fn best<'e>(
        &self,
        endpoints: &'e [Endpoint],
    ) -> impl Iterator<Item = (&'e Arc<Workload>, SocketAddr)> {
        let best = self.nearest(endpoints);
        self.candidates(endpoints)
            .filter(move |(rank, _, _)| Some(*rank) == best)
            .map(|(_, endpoint, to)| (&endpoint.workload, to))
    }

    fn nearest(&self, endpoints: &[Endpoint]) -> Option<usize> {
        self.candidates(endpoints).map(|(rank, _, _)| rank).max()
    }

    /// Says why nobody could be chosen.
    pub(super) fn explain(&self, endpoints: &[Endpoint]) -> RouteError {
        let service = self.service.key();
        let willing = || {
            endpoints
                .iter()
                .filter(|endpoint| self.is_willing(endpoint))
        };
        let near = |endpoint: &&Endpoint| endpoint.workload.network == self.source.network;
        match willing().next() {
            Some(far) if !willing().any(|endpoint| near(&endpoint)) => RouteError::OtherNetwork {
                service,
                network: far.workload.network.clone(),
                own: self.source.network.clone(),
            },
            Some(_)
                if willing()
                    .filter(near)
                    .all(|e| e.workload.workload_ips.is_empty()) =>
            {
                RouteError::NoAddress { service }
            }
            _ => RouteError::NoHealthyBackend {
                service,
                port: self.destination.port(),
                endpoints: endpoints.len(),
            },
        }
    }

    /// Those who may be chosen, each with its rank (higher is nearer) and its address.
    fn candidates<'e>(
        &self,
        endpoints: &'e [Endpoint],
    ) -> impl Iterator<Item = (usize, &'e Endpoint, SocketAddr)> {
        endpoints.iter().filter_map(|endpoint| {
            let reachable = endpoint.workload.network == self.source.network;
            if !reachable || !self.is_willing(endpoint) {
                return None;
            }
            let rank = self.rank(&endpoint.workload)?;
            let address = self.address(&endpoint.workload)?;
            Some((
                rank,
                endpoint,
                SocketAddr::new(address, self.target(endpoint)?),
            ))
        })
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
        let own = endpoint.ports.get(&self.destination.port()).copied();
        own.filter(|port| *port != 0)
            .or_else(|| Some(self.service_target).filter(|port| *port != 0))
    }

    /// An address of the family that was dialled, or any.
    fn address(&self, workload: &Workload) -> Option<IpAddr> {
        let wanted = self.destination.is_ipv4();
        let ips = &workload.workload_ips;
        ips.iter()
            .find(|ip| ip.is_ipv4() == wanted)
            .or_else(|| ips.first())
            .copied()
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
