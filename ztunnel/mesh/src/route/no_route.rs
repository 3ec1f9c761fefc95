//! Why a part of a decision found no route.

use std::sync::Arc;

use super::RouteError;
use crate::Missing;

/// Why a part of the decision found no route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoRoute {
    Needs(Missing),
    Resolve(Arc<str>),
    Refuse(RouteError),
}

impl From<Missing> for NoRoute {
    fn from(missing: Missing) -> Self {
        Self::Needs(missing)
    }
}

impl From<RouteError> for NoRoute {
    fn from(error: RouteError) -> Self {
        Self::Refuse(error)
    }
}
