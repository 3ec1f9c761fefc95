//! The whole mesh at one moment, with the indexes that routing and authorization ask.
//!
//! A snapshot never changes: whoever learns something new builds another one and swaps it in.
//! Every lookup that a connection makes is a hash lookup on borrowed data and allocates nothing.
//! Addresses are kept canonical (an IPv4-mapped IPv6 address is its IPv4 address), so that a
//! dual-stack socket finds the same workload as an IPv4 one.

use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};

use super::{
    Identity, NamespacedHostname, NetworkMode, Policy, PolicyScope, Ports, Service, Uid, Workload,
};

/// A workload as one of the backends of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What runs there.
    pub workload: Arc<Workload>,
    /// Its own target ports by service port; they go before the service's.
    pub ports: Ports,
}

/// A service with everything that choosing one of its backends needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    /// The service.
    pub service: Arc<Service>,
    /// Its backends, in the order in which the workloads were given.
    pub endpoints: Vec<Endpoint>,
    /// Those of its `subject_alt_names` that are identities: besides its own one, a backend may
    /// present any of these.
    pub identities: Vec<Identity>,
}

/// Objects by network name and canonical address.
type AddressIndex<T> = HashMap<Arc<str>, HashMap<IpAddr, T>>;

/// The whole mesh at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    workloads: HashMap<Uid, Arc<Workload>>,
    addresses: AddressIndex<Arc<Workload>>,
    services: HashMap<NamespacedHostname, Arc<ServiceEntry>>,
    vips: AddressIndex<Arc<ServiceEntry>>,
    policies: HashMap<Arc<str>, Arc<Policy>>,
    global_policies: Vec<Arc<Policy>>,
    namespace_policies: HashMap<Arc<str>, Vec<Arc<Policy>>>,
}

impl Snapshot {
    /// Builds the indexes. Of several workloads with one uid, services with one key or policies
    /// with one key the last one counts. Where two workloads claim one address, one with a
    /// network of its own goes before one on its node's network, and after that the last one.
    #[must_use]
    pub fn build(workloads: Vec<Workload>, services: Vec<Service>, policies: Vec<Policy>) -> Self {
        let workloads = last_of_each(workloads, |workload| workload.uid.clone());
        let services = last_of_each(services, Service::key);
        let policies = last_of_each(policies, Policy::key);
        let mut snapshot = Self::default();
        snapshot.index_addresses(&workloads);
        snapshot.index_services(services, &workloads);
        snapshot.index_policies(policies);
        snapshot.workloads = workloads.into_iter().map(|w| (w.uid.clone(), w)).collect();
        snapshot
    }

    /// The workload with this uid.
    #[must_use]
    pub fn workload_by_uid(&self, uid: &Uid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that has this address in this network.
    #[must_use]
    pub fn workload_by_address(&self, network: &str, address: IpAddr) -> Option<&Arc<Workload>> {
        self.addresses.get(network)?.get(&address.to_canonical())
    }

    /// The service that has this virtual address in this network.
    #[must_use]
    pub fn service_by_vip(&self, network: &str, address: IpAddr) -> Option<&Arc<Service>> {
        self.entry_by_vip(network, address)
            .map(|entry| &entry.service)
    }

    /// As [`Self::service_by_vip`], together with the backends.
    #[must_use]
    pub fn entry_by_vip(&self, network: &str, address: IpAddr) -> Option<&Arc<ServiceEntry>> {
        self.vips.get(network)?.get(&address.to_canonical())
    }

    /// The service with this key.
    #[must_use]
    pub fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services.get(key).map(|entry| &entry.service)
    }

    /// The backends of a service; none for an unknown service.
    #[must_use]
    pub fn endpoints(&self, key: &NamespacedHostname) -> &[Endpoint] {
        self.services.get(key).map_or(&[], |entry| &entry.endpoints)
    }

    /// The policies that apply to a workload: the global ones, those of its namespace, and the
    /// selector policies that it lists. A listed policy that is not known is left out.
    pub fn policies_for<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = &'a Arc<Policy>> {
        let of_namespace = self.namespace_policies.get(&workload.namespace);
        let selected = workload
            .authorization_policies
            .iter()
            .filter_map(|key| self.policies.get(key))
            .filter(|policy| policy.scope == PolicyScope::WorkloadSelector);
        self.global_policies
            .iter()
            .chain(of_namespace.into_iter().flatten())
            .chain(selected)
    }

    /// Every workload, in no particular order.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// Every service, in no particular order.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.values().map(|entry| &entry.service)
    }

    /// Every policy, in no particular order.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    fn index_addresses(&mut self, workloads: &[Arc<Workload>]) {
        for workload in workloads {
            let network = self.addresses.entry(workload.network.clone()).or_default();
            for address in &workload.workload_ips {
                let address = address.to_canonical();
                let shared = workload.network_mode == NetworkMode::HostNetwork;
                if shared && network.contains_key(&address) {
                    continue;
                }
                network.insert(address, workload.clone());
            }
        }
    }

    fn index_services(&mut self, services: Vec<Arc<Service>>, workloads: &[Arc<Workload>]) {
        let mut endpoints: HashMap<&NamespacedHostname, Vec<Endpoint>> = HashMap::new();
        for workload in workloads {
            for (key, ports) in &workload.services {
                let endpoint = Endpoint {
                    workload: workload.clone(),
                    ports: ports.clone(),
                };
                endpoints.entry(key).or_default().push(endpoint);
            }
        }
        for service in services {
            let key = service.key();
            let endpoints = endpoints.remove(&key).unwrap_or_default();
            let identities = service
                .subject_alt_names
                .iter()
                .filter_map(|name| name.parse().ok())
                .collect();
            let entry = Arc::new(ServiceEntry {
                service,
                endpoints,
                identities,
            });
            for vip in &entry.service.vips {
                let network = self.vips.entry(vip.network.clone()).or_default();
                network.insert(vip.address.to_canonical(), entry.clone());
            }
            self.services.insert(key, entry);
        }
    }

    fn index_policies(&mut self, policies: Vec<Arc<Policy>>) {
        for policy in policies {
            self.policies.insert(policy.key().into(), policy.clone());
            match policy.scope {
                PolicyScope::Global => self.global_policies.push(policy),
                PolicyScope::Namespace => {
                    let namespace = policy.namespace.clone();
                    self.namespace_policies
                        .entry(namespace)
                        .or_default()
                        .push(policy);
                }
                PolicyScope::WorkloadSelector => {}
            }
        }
    }
}

/// The objects in the order in which they came, without those that a later one replaces.
fn last_of_each<K: Eq + Hash, T>(objects: Vec<T>, key: impl Fn(&T) -> K) -> Vec<Arc<T>> {
    let mut seen = HashSet::with_capacity(objects.len());
    let mut kept: Vec<_> = objects
        .into_iter()
        .rev()
        .filter(|object| seen.insert(key(object)))
        .map(Arc::new)
        .collect();
    kept.reverse();
    kept
}

pub(super) fn services_by_key<S: serde::Serializer>(
    services: &[(NamespacedHostname, Ports)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(services.iter().map(|(key, ports)| (key.to_string(), ports)))
}

#[cfg(test)]
mod tests;
