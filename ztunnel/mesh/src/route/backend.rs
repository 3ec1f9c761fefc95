//! Chooses one endpoint of a service: a backend, or an instance of a waypoint or network gateway.
//!
//! The choice passes over the endpoints several times and allocates nothing: the first pass finds
//! the best rank, the second the sum of its weights, the third the endpoint of the random number.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::RouteError;
use super::explain::{CandidateOutcome, CandidateStep, Exclusion, Step, Trace};
use super::reachable::{AddressPreference, Reachable};
use crate::{
    Endpoint, HealthPolicy, HealthStatus, LoadBalancing, LoadBalancingMode, RoutingScope, Service,
    ServiceEntry, Workload,
};

/// The role of the endpoint to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It serves the connection.
    Backend,
    /// It is a waypoint. One with an application tunnel needs no target port of its own.
    Waypoint,
    /// It is a gateway into another network, and may itself be in that network.
    NetworkGateway,
}

/// The choice of one endpoint of a service.
pub(super) struct BackendChoice<'a> {
    pub(super) source: &'a Workload,
    pub(super) service: &'a Arc<Service>,
    pub(super) endpoints: &'a [Endpoint],
    /// The service port.
    pub(super) port: u16,
    pub(super) purpose: Purpose,
    pub(super) preference: AddressPreference<'a>,
}

/// An endpoint that may be chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) workload: &'a Arc<Workload>,
    pub(super) reachable: Reachable<'a>,
    /// The target port.
    pub(super) port: u16,
    /// The number of routing preferences that it matches.
    rank: usize,
}

impl Candidate<'_> {
    /// Its address, if it needs neither name resolution nor a network gateway.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match self.reachable {
            Reachable::Address(address) => Some(SocketAddr::new(address, self.port)),
            Reachable::Hostname(_) | Reachable::RemoteNetwork => None,
        }
    }

    fn is_among(&self, addresses: &[SocketAddr]) -> bool {
        self.address().is_some_and(|at| addresses.contains(&at))
    }

    fn weight(&self) -> u64 {
        u64::from(self.workload.capacity)
    }
}

impl<'a> BackendChoice<'a> {
    /// The choice of a backend of the service at a dialled address. `resolved` holds the addresses
    /// of host names.
    pub(super) fn of_service(
        source: &'a Workload,
        entry: &'a ServiceEntry,
        dialled: SocketAddr,
        resolved: &'a [(Arc<str>, IpAddr)],
    ) -> Self {
        Self {
            source,
            service: &entry.service,
            endpoints: &entry.endpoints,
            port: dialled.port(),
            purpose: Purpose::Backend,
            preference: AddressPreference {
                like: dialled.ip(),
                families: entry.service.ip_families,
                resolved,
            },
        }
    }

    /// Chooses by the random number among the best candidates; one of `except` only if there is no
    /// other.
    ///
    /// # Errors
    /// When there is no candidate; the error says why.
    pub(super) fn pick(
        &self,
        random: u64,
        except: &[SocketAddr],
        trace: &impl Trace,
    ) -> Result<Candidate<'a>, RouteError> {
        let best = self.best_rank();
        let chosen = self
            .pick_weighted(best, random, |candidate| !candidate.is_among(except))
            .or_else(|| self.pick_weighted(best, random, |_| true));
        trace.step(|| self.step(best, except, chosen.as_ref()));
        chosen.ok_or_else(|| self.error())
    }

    fn pick_weighted(
        &self,
        rank: Option<usize>,
        random: u64,
        accepts: impl Fn(&Candidate<'_>) -> bool,
    ) -> Option<Candidate<'a>> {
        let accepted = || self.of_rank(rank).filter(&accepts);
        let total = accepted().map(|candidate| candidate.weight()).sum();
        let mut left = random.checked_rem(total)?;
        for candidate in accepted() {
            if left < candidate.weight() {
                return Some(candidate);
            }
            left -= candidate.weight();
        }
        None
    }

    /// The candidates with the best rank, among which the random number chooses.
    pub(super) fn best(&self) -> impl Iterator<Item = Candidate<'a>> {
        self.of_rank(self.best_rank())
    }

    fn best_rank(&self) -> Option<usize> {
        self.candidates().map(|candidate| candidate.rank).max()
    }

    fn of_rank(&self, rank: Option<usize>) -> impl Iterator<Item = Candidate<'a>> {
        self.candidates()
            .filter(move |candidate| Some(candidate.rank) == rank)
    }

    fn candidates(&self) -> impl Iterator<Item = Candidate<'a>> {
        let endpoints = self.endpoints.iter();
        endpoints.filter_map(|endpoint| self.consider(endpoint).ok())
    }

    fn consider(&self, endpoint: &'a Endpoint) -> Result<Candidate<'a>, Exclusion> {
        let workload = &endpoint.workload;
        let port = self.usable_port(endpoint)?;
        Ok(Candidate {
            workload,
            reachable: self.reach(workload)?,
            port,
            rank: self.rank(workload).ok_or(Exclusion::Locality)?,
        })
    }

    /// The target port of an endpoint that is healthy enough and has a capacity.
    fn usable_port(&self, endpoint: &Endpoint) -> Result<u16, Exclusion> {
        let balancing = self.balancing();
        let policy = balancing.map_or(HealthPolicy::OnlyHealthy, |b| b.health_policy);
        let workload = &endpoint.workload;
        if policy == HealthPolicy::OnlyHealthy && workload.status == HealthStatus::Unhealthy {
            return Err(Exclusion::Unhealthy);
        }
        if workload.capacity == 0 {
            return Err(Exclusion::NoCapacity);
        }
        self.target_port(endpoint).ok_or(Exclusion::NoTargetPort)
    }

    /// The target port: the endpoint's own takes precedence over the service's.
    fn target_port(&self, endpoint: &Endpoint) -> Option<u16> {
        let is_set = |port: &u16| *port != 0;
        let own = endpoint.ports.get(&self.port).copied().filter(is_set);
        let common = || self.service.ports.get(&self.port).copied().filter(is_set);
        // The proxy of the waypoint accepts the tunnel and delivers it to the application's port.
        let tunnelled = || {
            let has_tunnel = endpoint.workload.application_tunnel.is_some();
            (self.purpose == Purpose::Waypoint && has_tunnel).then_some(self.port)
        };
        own.or_else(common).or_else(tunnelled)
    }

    fn reach(&self, workload: &'a Workload) -> Result<Reachable<'a>, Exclusion> {
        let is_own_network = workload.network == self.source.network;
        if is_own_network || self.purpose == Purpose::NetworkGateway {
            let reachable = self.preference.reach(workload);
            return reachable.ok_or(Exclusion::NoAddress);
        }
        // In this network its addresses may belong to other workloads.
        match workload.network_gateway {
            Some(_) => Ok(Reachable::RemoteNetwork),
            None => Err(Exclusion::NoNetworkGateway),
        }
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
        let source = self.source;
        match scope {
            RoutingScope::Region => source.locality.region == workload.locality.region,
            RoutingScope::Zone => source.locality.zone == workload.locality.zone,
            RoutingScope::Subzone => source.locality.subzone == workload.locality.subzone,
            RoutingScope::Node => source.node == workload.node,
            RoutingScope::Cluster => source.cluster_id == workload.cluster_id,
            RoutingScope::Network => source.network == workload.network,
        }
    }

    fn balancing(&self) -> Option<&LoadBalancing> {
        self.service.load_balancing.as_ref()
    }

    /// Why there is no candidate.
    fn error(&self) -> RouteError {
        let service = self.service.key();
        let is_usable = |endpoint: &&Endpoint| self.usable_port(endpoint).is_ok();
        let usable = || self.endpoints.iter().filter(is_usable);
        let is_near = |endpoint: &Endpoint| endpoint.workload.network == self.source.network;
        let is_unreachable = |endpoint: &'a Endpoint| self.reach(&endpoint.workload).is_err();
        let all_unreachable = usable().all(is_unreachable);
        match usable().next() {
            Some(far) if all_unreachable && !usable().any(is_near) => {
                RouteError::NoNetworkGateway {
                    service,
                    network: far.workload.network.clone(),
                    own: self.source.network.clone(),
                }
            }
            Some(_) if all_unreachable => RouteError::NoAddress { service },
            _ => RouteError::NoHealthyBackend {
                service,
                port: self.port,
                endpoints: self.endpoints.len(),
            },
        }
    }

    fn step(
        &self,
        best: Option<usize>,
        except: &[SocketAddr],
        chosen: Option<&Candidate<'_>>,
    ) -> Step {
        let outcome = |endpoint: &'a Endpoint| {
            let candidate = match self.consider(endpoint) {
                Ok(candidate) => candidate,
                Err(exclusion) => return CandidateOutcome::Excluded(exclusion),
            };
            let is_chosen = chosen.is_some_and(|c| Arc::ptr_eq(c.workload, candidate.workload));
            if is_chosen {
                CandidateOutcome::Chosen
            } else if Some(candidate.rank) != best {
                CandidateOutcome::Excluded(Exclusion::LessPreferred)
            } else if candidate.is_among(except) {
                CandidateOutcome::Excluded(Exclusion::Excepted)
            } else {
                CandidateOutcome::Eligible
            }
        };
        let candidates = self.endpoints.iter().map(|endpoint| CandidateStep {
            workload: endpoint.workload.clone(),
            outcome: outcome(endpoint),
        });
        Step::Choice {
            service: self.service.clone(),
            port: self.port,
            candidates: candidates.collect(),
        }
    }
}
