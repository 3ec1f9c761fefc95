//! An immutable state of the mesh, with the indexes that routing and authorization use.
//!
//! A published snapshot never changes. A writer clones it, which is cheap because a clone shares
//! everything with its original, applies the changes to the clone (`snapshot/apply.rs`) and
//! publishes it. A hundred thousand workloads are held once, regardless of the number of clones
//! (`snapshot/index.rs`), and readers never wait for writers.
//!
//! Each lookup for a connection is a few hash lookups on borrowed data and allocates nothing.
//! Addresses are canonical (an IPv4-mapped IPv6 address is its IPv4 address), so that a dual-stack
//! socket finds the same workload as an IPv4 socket.

mod apply;
mod backends;
mod claims;
mod index;
mod placeholders;
mod policies;
mod ranges;
mod services;

use std::iter;
use std::net::IpAddr;
use std::sync::Arc;

pub use self::backends::Endpoint;
use self::backends::PendingBackends;
use self::claims::Claims;
use self::index::{Index, Keyed};
use self::placeholders::Placeholders;
use self::policies::Policies;
use self::ranges::Ranges;
pub use self::services::ServiceEntry;
use self::services::Services;
use super::{NamespacedHostname, Policy, Service, Uid, Workload};

/// An immutable state of the mesh. A clone shares everything with its original.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    workloads: Index<Arc<Workload>>,
    addresses: Claims<IpAddr, Workload>,
    services: Services,
    vips: Claims<IpAddr, Service>,
    ranges: Ranges,
    pending_backends: PendingBackends,
    policies: Policies,
    placeholders: Placeholders,
    partial: bool,
}

impl Snapshot {
    /// Marks the snapshot as partial: it holds only resources that were asked for (on-demand
    /// discovery), so a missing resource may still be in the mesh. Clones are partial, too.
    #[must_use]
    pub fn partial(self) -> Self {
        Self {
            partial: true,
            ..self
        }
    }

    /// Whether the snapshot holds the whole mesh, so that a missing resource is outside the mesh.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        !self.partial
    }

    /// The name of the resource with this address in this network that could not be decoded.
    #[must_use]
    pub fn placeholder_at(&self, network: &str, address: IpAddr) -> Option<&Arc<str>> {
        self.placeholders.at(network, address)
    }

    /// Whether a service or a workload has this address in this network.
    #[must_use]
    pub fn knows_address(&self, network: &str, address: IpAddr) -> bool {
        self.entries_by_vip(network, address).next().is_some()
            || self.workload_by_address(network, address).is_some()
    }

    /// The workload with this uid.
    #[must_use]
    pub fn workload_by_uid(&self, uid: &Uid) -> Option<&Arc<Workload>> {
        self.workloads.get(&uid.0)
    }

    /// The workload that has this address in this network.
    #[must_use]
    pub fn workload_by_address(&self, network: &str, address: IpAddr) -> Option<&Arc<Workload>> {
        self.addresses.get(network, address.to_canonical())
    }

    /// The service that a virtual address belongs to for a client of a namespace: as for a host name
    /// ([`Self::resolve_hostname`]) that of its own namespace, or the canonical one, or any visible
    /// one. An exact address takes precedence over a range that contains it, and a longer prefix over
    /// a shorter one.
    #[must_use]
    pub fn entry_by_vip(
        &self,
        network: &str,
        address: IpAddr,
        client_namespace: &str,
    ) -> Option<&Arc<ServiceEntry>> {
        let address = address.to_canonical();
        let exact = self.vips.all(network, address);
        services::preferred(self.entries_of(exact), client_namespace).or_else(|| {
            let mut ranges = self.ranges.around(network, address);
            ranges.find_map(|range| services::preferred(self.entries_of(range), client_namespace))
        })
    }

    /// Every service with this virtual address in this network, regardless of visibility, in the
    /// order of [`Self::entry_by_vip`].
    pub fn entries_by_vip(
        &self,
        network: &str,
        address: IpAddr,
    ) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        let address = address.to_canonical();
        let ranges = self.ranges.around(network, address).flatten();
        self.entries_of(self.vips.all(network, address))
            .chain(self.entries_of(ranges))
    }

    /// The first of [`Self::entries_by_vip`].
    #[must_use]
    pub fn service_by_vip(&self, network: &str, address: IpAddr) -> Option<&Arc<Service>> {
        let mut entries = self.entries_by_vip(network, address);
        entries.next().map(|entry| &entry.service)
    }

    fn entries_of<'a, S: Iterator<Item = &'a Arc<Service>>>(
        &'a self,
        services: S,
    ) -> iter::FilterMap<S, impl FnMut(&'a Arc<Service>) -> Option<&'a Arc<ServiceEntry>> + Clone>
    {
        services.filter_map(|service| self.services.get(&service.namespace, &service.hostname))
    }

    /// The service with this key.
    #[must_use]
    pub fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.entry(key).map(|entry| &entry.service)
    }

    /// As [`Self::service`], with the backends.
    #[must_use]
    pub fn entry(&self, key: &NamespacedHostname) -> Option<&Arc<ServiceEntry>> {
        self.services.get(&key.namespace, &key.hostname)
    }

    /// The backends of a service; empty for an unknown service.
    #[must_use]
    pub fn endpoints(&self, key: &NamespacedHostname) -> &[Endpoint] {
        self.entry(key).map_or(&[], |entry| &entry.endpoints)
    }

    /// The services with this host name in all namespaces, ordered by namespace.
    pub fn services_by_hostname(&self, hostname: &str) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.services.named(hostname).iter()
    }

    /// The service that a host name belongs to for a client of a namespace: that of its own
    /// namespace, or the canonical one, or that of the first namespace by name. A service that is
    /// visible in its own namespace only does not exist for other namespaces.
    #[must_use]
    pub fn resolve_hostname(
        &self,
        hostname: &str,
        client_namespace: &str,
    ) -> Option<&Arc<ServiceEntry>> {
        self.resolve_hostname_among(hostname, client_namespace, |_| true)
    }

    /// As [`Self::resolve_hostname`], among the services that `accepts` returns true for.
    #[must_use]
    pub fn resolve_hostname_among(
        &self,
        hostname: &str,
        client_namespace: &str,
        accepts: impl Fn(&ServiceEntry) -> bool,
    ) -> Option<&Arc<ServiceEntry>> {
        self.services.resolve(hostname, client_namespace, accepts)
    }

    /// The policies that apply to a workload: the global ones, those of its namespace, and the
    /// selector policies that it lists. A listed policy that does not exist is ignored.
    pub fn policies_for<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = &'a Arc<Policy>> {
        self.policies.for_workload(workload)
    }

    /// Every workload, in no particular order.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// Every service, in no particular order.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.entries().map(|entry| &entry.service)
    }

    /// As [`Self::services`], with the backends.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &Arc<ServiceEntry>> {
        self.services.iter()
    }

    /// The policy with this key, `namespace/name`.
    #[must_use]
    pub fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// Every policy, in no particular order.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.policies.iter()
    }
}

impl Keyed for Arc<Workload> {
    type Key<'k> = &'k str;

    fn key(&self) -> &str {
        &self.uid.0
    }

    fn has(&self, key: &str) -> bool {
        *self.uid.0 == *key
    }
}

#[cfg(test)]
mod tests;
