//! How a snapshot becomes the next one.

use std::sync::Arc;

use super::backends::BackendChanges;
use super::{ServiceEntry, Snapshot};
use crate::{Change, NamespacedHostname, Policy, Service, Uid, Workload};

impl Snapshot {
    /// As [`Self::apply_all`] with one change.
    pub fn apply(&mut self, change: Change) -> bool {
        self.apply_all([change])
    }

    /// Makes changes, in their order, in this copy: no other copy notices. Returns whether
    /// anything is different now; what is told once more as it was changes nothing.
    ///
    /// Many changes at once cost much less than one by one: what several of them touch is copied
    /// once.
    pub fn apply_all(&mut self, changes: impl IntoIterator<Item = Change>) -> bool {
        let mut changed = false;
        let mut changes_by_service = BackendChanges::new();
        for change in changes {
            changed |= match change {
                Change::Workload(workload) => self.put_workload(*workload, &mut changes_by_service),
                Change::Placeholder { name, addresses } => self.placeholders.put(name, addresses),
                Change::RemovePlaceholder(name) => self.placeholders.remove(&name),
                Change::RemoveWorkload(uid) => self.remove_workload(&uid, &mut changes_by_service),
                Change::Service(service) => self.put_service(*service),
                Change::RemoveService(key) => self.remove_service(&key),
                Change::Policy(policy) => self.policies.insert(*policy),
                Change::RemovePolicy(key) => self.policies.remove(&key),
            };
            if changes_by_service.is_full() {
                let changes_by_service =
                    std::mem::replace(&mut changes_by_service, BackendChanges::new());
                changes_by_service.apply(&mut self.services, &mut self.pending_backends);
            }
        }
        changes_by_service.apply(&mut self.services, &mut self.pending_backends);
        changed
    }

    /// Builds a snapshot from nothing. Of several workloads with one uid, services with one key or
    /// policies with one key the last one counts. Where two workloads claim one address, one with
    /// a network of its own goes before one on its node's network, and after that the last one;
    /// of two services with one virtual address the last one. Nothing else depends on the order.
    #[must_use]
    pub fn build(workloads: Vec<Workload>, services: Vec<Service>, policies: Vec<Policy>) -> Self {
        let workloads = workloads.into_iter().map(Box::new).map(Change::Workload);
        let services = services.into_iter().map(Box::new).map(Change::Service);
        let policies = policies.into_iter().map(Box::new).map(Change::Policy);
        let mut snapshot = Self::default();
        snapshot.apply_all(services.chain(workloads).chain(policies));
        snapshot
    }

    fn put_workload(
        &mut self,
        workload: Workload,
        changes_by_service: &mut BackendChanges,
    ) -> bool {
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
            // Only now, so that an address that stays keeps its place among those who claim it.
            self.release_addresses(before);
            changes_by_service.go(before);
        }
        changes_by_service.come(&workload);
        self.workloads.insert(workload);
        true
    }

    fn remove_workload(&mut self, uid: &Uid, changes_by_service: &mut BackendChanges) -> bool {
        let Some(workload) = self.workloads.remove(&uid.0) else {
            return false;
        };
        self.release_addresses(&workload);
        changes_by_service.go(&workload);
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
        // Those that stand behind it go on saying so.
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
