//! Every step of a route decision as data.

use std::cell::RefCell;
use std::sync::Arc;

use super::Role;
use crate::{GatewayDestination, Service, Workload};

/// The object that the dialled address belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dialled {
    /// A tunnel that the source, a gateway, opens itself.
    OwnTunnel,
    /// An address outside the mesh.
    Outside,
    /// The address of a workload.
    Workload(Arc<Workload>),
    /// A virtual address of a service.
    Service(Arc<Service>),
}

/// Whether the connection goes through a waypoint, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaypointStep {
    /// The dialled object has no waypoint.
    None,
    /// The source is a gateway that applies its own rules.
    SourceIsGateway,
    /// The source is the waypoint.
    SourceIsWaypoint,
    /// The connection goes through one of these waypoints.
    Applies(Vec<GatewayDestination>),
}

/// Why an endpoint of a service is not chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exclusion {
    /// It is unhealthy, and the service allows healthy endpoints only.
    Unhealthy,
    /// Its capacity is 0.
    NoCapacity,
    /// Neither the endpoint nor the service has a target port for the dialled port.
    NoTargetPort,
    /// It has no address of a family that the service allows, and no host name.
    NoAddress,
    /// It is in another network and names no network gateway.
    NoNetworkGateway,
    /// It does not match the routing preferences, and the service demands all of them.
    Locality,
    /// Another endpoint matches more of the routing preferences.
    LessPreferred,
    /// The kernel could have chosen it ([`OutboundRequest::except`]).
    Excepted,
}

/// The result for one endpoint of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CandidateOutcome {
    /// It was chosen.
    Chosen,
    /// It could have been chosen: the random number chose another one.
    Eligible,
    /// It could not be chosen.
    Excluded(Exclusion),
}

/// One endpoint of a service that was considered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateStep {
    /// The endpoint.
    pub workload: Arc<Workload>,
    /// The result.
    pub outcome: CandidateOutcome,
}

/// One step of a route decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The dialled address was looked up.
    Dialled(Dialled),
    /// The waypoints of the dialled object were considered.
    Waypoint(WaypointStep),
    /// The destination of a waypoint or network gateway was looked up.
    Gateway {
        /// Its role.
        role: Role,
        /// Its destination.
        destination: GatewayDestination,
        /// Whether the mesh has a service or workload with this name or address.
        found: bool,
    },
    /// One endpoint of a service was to be chosen: a backend, or an instance of a waypoint or
    /// network gateway.
    Choice {
        /// The service.
        service: Arc<Service>,
        /// The service port.
        port: u16,
        /// All endpoints of the service.
        candidates: Vec<CandidateStep>,
    },
}

/// Receives the steps of a decision.
pub(super) trait Trace {
    /// Records a step, which is only built if the trace keeps it.
    fn step(&self, step: impl FnOnce() -> Step);
}

/// Keeps no step, so that a decision without an explanation costs nothing more.
pub(super) struct NoTrace;

impl Trace for NoTrace {
    fn step(&self, _: impl FnOnce() -> Step) {}
}

impl Trace for RefCell<Vec<Step>> {
    fn step(&self, step: impl FnOnce() -> Step) {
        self.borrow_mut().push(step());
    }
}
