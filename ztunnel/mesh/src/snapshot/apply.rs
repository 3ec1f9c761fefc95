//! Applies changes to a snapshot.

use std::sync::Arc;

use super::backends::BackendChanges;
use super::{ServiceEntry, Snapshot};
use crate::{Change, NamespacedHostname, Policy, Service, Uid, Workload};

impl Snapshot {
    /// As [`Self::apply_all`] with one change.
    pub fn apply(&mut self, change: Change) -> bool {
        self.apply_all([change])
    }

    /// Applies changes in order. Clones of this snapshot are not affected. Returns whether anything
    /// is different: a resource that is equal to the one held changes nothing.
    ///
    /// One call with many changes is much cheaper than many calls: a shared part that several
    /// changes touch is copied once.
    pub fn apply_all(&mut self, changes: impl IntoIterator<Item = Change>) -> bool {
        let mut changed = false;
        let mut backends = BackendChanges::new();
        for change in changes {
            changed |= match change {
                Change::Workload(workload) => self.put_workload(*workload, &mut backends),
                Change::Placeholder { name, addresses } => self.placeholders.put(name, addresses),
                Change::RemovePlaceholder(name) => self.placeholders.remove(&name),
                Change::RemoveWorkload(uid) => self.remove_workload(&uid, &mut backends),
                Change::Service(service) => self.put_service(*service),
                Change::RemoveService(key) => self.remove_service(&key),
                Change::Policy(policy) => self.policies.insert(*policy),
                Change::RemovePolicy(key) => self.policies.remove(&key),
            };
            if backends.is_full() {
                let backends = std::mem::replace(&mut backends, BackendChanges::new());
                backends.apply(&mut self.services, &mut self.pending_backends);
            }
        }
        backends.apply(&mut self.services, &mut self.pending_backends);
        changed
    }

    /// Builds a snapshot. Of several workloads with one uid, services with one key or policies with
    /// one key the last one is used. If two workloads claim one address, a workload with its own
    /// network takes precedence over one on its node's network, otherwise the last one does; of two
    /// services with one virtual address the last one does. Nothing else depends on the order.
    #[must_use]
    pub fn build(workloads: Vec<Workload>, services: Vec<Service>, policies: Vec<Policy>) -> Self {
        let workloads = workloads.into_iter().map(Box::new).map(Change::Workload);
        let services = services.into_iter().map(Box::new).map(Change::Service);
        let policies = policies.into_iter().map(Box::new).map(Change::Policy);
        let mut snapshot = Self::default();
        snapshot.apply_all(services.chain(workloads).chain(policies));
        snapshot
    }

    fn put_workload(&mut self, workload: Workload, backends: &mut BackendChanges) -> bool {
        let before = self.workloads.get(&workload.uid.0).cloned();
        if before.as_deref() == Some(&workload) {
            return false;
        }
        let workload = Arc::new(workload);
        for address in &workload.workload_ips {
            let address = address.to_canonical();
            self.addresses.claim(&workload.network, address, &workload);
        }
        if let Some(before) = &before {
            // After the new claims, so that an address that both have keeps its position.
            self.release_addresses(before);
            backends.remove_workload(before);
        }
        backends.add_workload(&workload);
        self.workloads.insert(workload);
        true
    }

    fn remove_workload(&mut self, uid: &Uid, backends: &mut BackendChanges) -> bool {
        let Some(workload) = self.workloads.remove(&uid.0) else {
            return false;
        };
        self.release_addresses(&workload);
        backends.remove_workload(&workload);
        true
    }

    fn release_addresses(&mut self, workload: &Arc<Workload>) {
        for address in &workload.workload_ips {
            let address = address.to_canonical();
            self.addresses.release(&workload.network, address, workload);
        }
    }

    fn put_service(&mut self, service: Service) -> bool {
        let key = service.key();
        let before = self.entry(&key).cloned();
        if before
            .as_ref()
            .is_some_and(|entry| *entry.service == service)
        {
            return false;
        }
        let service = Arc::new(service);
        for vip in &service.vips {
            let address = vip.address.to_canonical();
            self.vips.claim(&vip.network, address, &service);
        }
        for range in &service.ranges {
            self.ranges.claim(range, &service);
        }
        let endpoints = match before {
            Some(before) => {
                self.release_vips(&before.service);
                before.endpoints.clone()
            }
            None => self.pending_backends.take(&key),
        };
        self.services.insert(ServiceEntry::new(service, endpoints));
        true
    }

    fn remove_service(&mut self, key: &NamespacedHostname) -> bool {
        let Some(entry) = self.services.remove(key) else {
            return false;
        };
        self.release_vips(&entry.service);
        // The workloads still list the service, which may be added again.
        self.pending_backends
            .keep(key.clone(), entry.endpoints.clone());
        true
    }

    fn release_vips(&mut self, service: &Arc<Service>) {
        for vip in &service.vips {
            let address = vip.address.to_canonical();
            self.vips.release(&vip.network, address, service);
        }
        for range in &service.ranges {
            self.ranges.release(range, service);
        }
    }
}
