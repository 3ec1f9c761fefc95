//! The input of a route decision.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::{Missing, NetworkAddress, ResourceKey, Snapshot, Workload};

/// A connection that a pod of this node opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundRequest<'a> {
    /// The workload of the pod.
    pub source: &'a Workload,
    /// The address and port that it dialled.
    pub destination: SocketAddr,
    /// Backends that the kernel could have chosen from the fast-path entry. Another backend is
    /// preferred if there is an equally near one, so that every backend gets its share.
    pub except: &'a [SocketAddr],
    /// Addresses of host names that the caller has resolved after [`Decision::Resolve`].
    ///
    /// [`Decision::Resolve`]: super::Decision::Resolve
    pub resolved: &'a [(Arc<str>, IpAddr)],
    /// Keys that the control plane does not have, as far as the caller has requested them after
    /// [`Missing::Resource`]. Only used with a partial snapshot.
    pub absent: &'a [ResourceKey],
}

impl<'a> OutboundRequest<'a> {
    /// A request without exceptions, resolved names and absent keys.
    #[must_use]
    pub const fn new(source: &'a Workload, destination: SocketAddr) -> Self {
        Self {
            source,
            destination,
            except: &[],
            resolved: &[],
            absent: &[],
        }
    }

    /// Fails if on-demand discovery has to request a key that the snapshot does not hold.
    pub(super) fn require_absent(&self, key: ResourceKey, mesh: &Snapshot) -> Result<(), Missing> {
        if mesh.is_complete() || self.absent.contains(&key) {
            return Ok(());
        }
        Err(Missing::Resource(key))
    }
}

/// The discovery key of an address in a workload's network.
#[must_use]
pub fn address_key(source: &Workload, address: IpAddr) -> ResourceKey {
    ResourceKey::Address(NetworkAddress {
        network: source.network.clone(),
        address: address.to_canonical(),
    })
}

/// What every part of a decision uses.
pub(super) struct RouteContext<'r, 'a, T> {
    pub(super) request: &'r OutboundRequest<'a>,
    pub(super) mesh: &'a Snapshot,
    pub(super) trace: &'r T,
}

impl<T> Clone for RouteContext<'_, '_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for RouteContext<'_, '_, T> {}
