//! Every place that a connection to a dialled address can go to. The fast-path entry of the address
//! is derived from it.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Route;
use super::backend::BackendChoice;
use super::dialled::{DialledTarget, canonical};
use super::path::{outside, without_tunnel};
use crate::{Service, ServiceEntry, View, Workload};

/// Every place that a connection to a dialled address can go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destinations {
    /// The dialled address, which is outside the mesh. The service is the dialled one, if it keeps
    /// the dialled address.
    Outside(Option<Arc<Service>>),
    /// The workload that has the dialled address.
    Workload(Arc<Workload>),
    /// The backends of a service.
    Service(Arc<ServiceEntry>),
    /// A waypoint. It chooses the destination.
    Waypoint,
}

impl Destinations {
    pub(super) fn of(target: &DialledTarget<'_>) -> Self {
        match target {
            DialledTarget::Outside(_, service) => Self::Outside(service.clone()),
            DialledTarget::Workload(_, workload) => Self::Workload((*workload).clone()),
            DialledTarget::Service(entry) => Self::Service((*entry).clone()),
            DialledTarget::BehindWaypoint(_) => Self::Waypoint,
        }
    }

    /// Calls `visit` with every place: its weight, and its route if it needs no tunnel. `source` is
    /// the client and `dialled` the address that these destinations were decided for.
    pub fn visit_each(
        &self,
        source: &Workload,
        dialled: SocketAddr,
        view: &View,
        mut visit: impl FnMut(Option<Route>, u32),
    ) {
        let dialled = canonical(dialled);
        match self {
            Self::Outside(service) => {
                visit(outside(source, dialled, service.clone(), view).ok(), 1)
            }
            Self::Workload(workload) => {
                visit(without_tunnel(source, workload, dialled, None, view), 1);
            }
            Self::Waypoint => visit(None, 1),
            Self::Service(entry) => {
                for candidate in BackendChoice::of_service(source, entry, dialled, &[]).best() {
                    // Host names and other networks need the proxy.
                    let route = candidate.address().and_then(|to| {
                        without_tunnel(source, candidate.workload, to, Some(entry), view)
                    });
                    visit(route, candidate.workload.capacity);
                }
            }
        }
    }
}
