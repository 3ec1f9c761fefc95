//! The output of a route decision.

use std::sync::Arc;

use super::explain::Step;
use super::no_route::NoRoute;
use super::{Destinations, Route, RouteError};
use crate::Missing;

/// The decision about a connection that a pod opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The connection takes a route.
    Route(Routed),
    /// The decision lacks a resource of the mesh: the caller obtains it and decides again.
    Needs(Missing),
    /// The decision lacks the addresses of this host name: the caller resolves it and decides again.
    Resolve(Arc<str>),
    /// The destination is in the mesh, and the connection must not or cannot go there.
    Refuse(RouteError),
}

/// The route of a connection, and what later connections to the same address can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    /// The route of this connection.
    pub route: Route,
    /// Every place that a connection to the dialled address can go to. The fast-path entry is
    /// derived from it ([`fastpath::entry`](crate::fastpath::entry)).
    pub destinations: Destinations,
}

impl From<NoRoute> for Decision {
    fn from(reason: NoRoute) -> Self {
        match reason {
            NoRoute::Needs(missing) => Self::Needs(missing),
            NoRoute::Resolve(hostname) => Self::Resolve(hostname),
            NoRoute::Refuse(error) => Self::Refuse(error),
        }
    }
}

/// A route decision with the steps that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The decision, the same as that of [`route`](super::route).
    pub decision: Decision,
}
