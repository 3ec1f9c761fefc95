//! The backends of services. Workloads list the services that they back, possibly before the
//! service is added.
//!
//! The backends of a service are one sorted list, which routing iterates. A list that a published
//! snapshot holds has to be copied for a change, so changes are collected by service and a batch
//! copies each list once.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _};

use super::index::{Index, Keyed};
use super::services::Services;
use crate::{NamespacedHostname, Ports, Workload};

/// A workload as one of the backends of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its own target ports by service port, which take precedence over the service's.
    pub ports: Arc<Ports>,
}

/// The changes of a batch to the backends of services.
#[derive(Debug)]
pub(super) struct BackendChanges {
    by_service: HashMap<NamespacedHostname, Vec<BackendChange>>,
    len: usize,
}

/// A workload backs a service with these ports, or (`None`) no longer backs it.
#[derive(Debug)]
struct BackendChange {
    workload: Arc<Workload>,
    ports: Option<Arc<Ports>>,
}

impl BackendChanges {
    /// Large enough that no list is copied often, small enough to need little memory.
    const LIMIT: usize = 8192;

    pub(super) fn new() -> Self {
        Self {
            by_service: HashMap::new(),
            len: 0,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.len >= Self::LIMIT
    }

    /// Adds a workload to the services that it lists.
    pub(super) fn add_workload(&mut self, workload: &Arc<Workload>) {
        for (key, ports) in workload.services.iter() {
            self.add(key, workload, Some(ports.clone()));
        }
    }

    /// Removes a workload from the services that it lists. A later [`Self::add_workload`] takes
    /// precedence.
    pub(super) fn remove_workload(&mut self, workload: &Arc<Workload>) {
        for (key, _) in workload.services.iter() {
            self.add(key, workload, None);
        }
    }

    fn add(
        &mut self,
        key: &NamespacedHostname,
        workload: &Arc<Workload>,
        ports: Option<Arc<Ports>>,
    ) {
        let workload = workload.clone();
        let change = BackendChange { workload, ports };
        self.len += 1;
        match self.by_service.get_mut(key) {
            Some(changes) => changes.push(change),
            None => drop(self.by_service.insert(key.clone(), vec![change])),
        }
    }

    /// Applies the changes.
    pub(super) fn apply(self, services: &mut Services, pending_backends: &mut PendingBackends) {
        for (key, changes) in self.by_service {
            if let Some(entry) = services.get_mut(&key) {
                let endpoints = merged(&entry.endpoints, changes);
                *entry = Arc::new(super::ServiceEntry {
                    service: entry.service.clone(),
                    endpoints,
                    identities: entry.identities.clone(),
                });
            } else {
                let before = pending_backends.take(&key);
                pending_backends.keep(key, merged(&before, changes));
            }
        }
    }
}

/// The list after some changes; of several changes of one workload the last one is used.
fn merged(before: &[Endpoint], mut changes: Vec<BackendChange>) -> Vec<Endpoint> {
    changes.sort_by(|a, b| a.workload.uid.cmp(&b.workload.uid));
    let mut after = Vec::with_capacity(before.len() + changes.len());
    let mut rest = before;
    let mut changes = changes.into_iter().peekable();
    while let Some(change) = changes.next() {
        let uid = &change.workload.uid;
        let superseded = changes.peek().is_some_and(|next| next.workload.uid == *uid);
        if superseded {
            continue;
        }
        let (unchanged, from) =
            rest.split_at(rest.partition_point(|endpoint| endpoint.workload.uid < *uid));
        after.extend_from_slice(unchanged);
        rest = match from.split_first() {
            Some((first, others)) if first.workload.uid == *uid => others,
            _ => from,
        };
        if let Some(ports) = change.ports {
            let workload = change.workload;
            after.push(Endpoint { workload, ports });
        }
    }
    after.extend_from_slice(rest);
    after.shrink_to_fit();
    after
}

/// The backends of services that are not in the snapshot.
#[derive(Debug, Clone, Default)]
pub(super) struct PendingBackends(Index<Backends>);

#[derive(Debug, Clone)]
struct Backends {
    of: NamespacedHostname,
    endpoints: Arc<[Endpoint]>,
}

impl PendingBackends {
    pub(super) fn take(&mut self, key: &NamespacedHostname) -> Vec<Endpoint> {
        let found = self.0.remove((&key.namespace, &key.hostname));
        found.map_or_else(Vec::new, |backends| backends.endpoints.to_vec())
    }

    pub(super) fn keep(&mut self, key: NamespacedHostname, endpoints: Vec<Endpoint>) {
        if !endpoints.is_empty() {
            self.0.insert(Backends {
                of: key,
                endpoints: endpoints.into(),
            });
        }
    }
}

impl Keyed for Backends {
    type Key<'k> = (&'k str, &'k str);

    fn key(&self) -> (&str, &str) {
        (&self.of.namespace, &self.of.hostname)
    }

    fn has(&self, key: (&str, &str)) -> bool {
        self.key() == key
    }
}
