//! Which workloads stand behind which service. Workloads say so, and they may say it before the
//! service is known.
//!
//! The backends of a service are one sorted list, which routing reads from one end to the other.
//! A list that a published snapshot holds has to be copied to be changed, so changes are gathered
//! service by service and a batch copies each list once.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt as _};

use super::index::{Index, Keyed};
use super::services::Services;
use crate::{NamespacedHostname, Ports, Workload};

/// A workload as one of the backends of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What runs there.
    pub workload: Arc<Workload>,
    /// Its own target ports by service port; they go before the service's.
    pub ports: Arc<Ports>,
}

/// What a batch does to the backends of services.
#[derive(Debug)]
pub(super) struct BackendChanges {
    by_service: HashMap<NamespacedHostname, Vec<Move>>,
    len: usize,
}

/// A workload stands behind a service with these ports from now on, or no longer.
#[derive(Debug)]
struct Move {
    workload: Arc<Workload>,
    ports: Option<Arc<Ports>>,
}

impl BackendChanges {
    /// So many that no list is copied too often, so few that they take no memory to speak of.
    const MANY: usize = 8192;

    pub(super) fn new() -> Self {
        Self {
            by_service: HashMap::new(),
            len: 0,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.len >= Self::MANY
    }

    /// Puts a workload behind the services that it names.
    pub(super) fn come(&mut self, workload: &Arc<Workload>) {
        for (key, ports) in workload.services.iter() {
            self.add(key, workload, Some(ports.clone()));
        }
    }

    /// Takes it away from there. [`Self::come`] afterwards goes before this.
    pub(super) fn go(&mut self, workload: &Arc<Workload>) {
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
        let moved = Move { workload, ports };
        self.len += 1;
        match self.by_service.get_mut(key) {
            Some(changes_by_service) => changes_by_service.push(moved),
            None => drop(self.by_service.insert(key.clone(), vec![moved])),
        }
    }

    /// Makes the changes_by_service.
    pub(super) fn apply(self, services: &mut Services, pending_backends: &mut PendingBackends) {
        for (key, changes_by_service) in self.by_service {
            if let Some(entry) = services.get_mut(&key) {
                let endpoints = merged(&entry.endpoints, changes_by_service);
                *entry = Arc::new(super::ServiceEntry {
                    service: entry.service.clone(),
                    endpoints,
                    identities: entry.identities.clone(),
                });
            } else {
                let before = pending_backends.take(&key);
                pending_backends.keep(key, merged(&before, changes_by_service));
            }
        }
    }
}

/// The list as it is after some changes_by_service; of several changes_by_service of one workload the last counts.
fn merged(before: &[Endpoint], mut changes_by_service: Vec<Move>) -> Vec<Endpoint> {
    changes_by_service.sort_by(|a, b| a.workload.uid.cmp(&b.workload.uid));
    let mut after = Vec::with_capacity(before.len() + changes_by_service.len());
    let mut rest = before;
    let mut changes_by_service = changes_by_service.into_iter().peekable();
    while let Some(moved) = changes_by_service.next() {
        let uid = &moved.workload.uid;
        let superseded = changes_by_service
            .peek()
            .is_some_and(|next| next.workload.uid == *uid);
        if superseded {
            continue;
        }
        let (unmoved, from) =
            rest.split_at(rest.partition_point(|endpoint| endpoint.workload.uid < *uid));
        after.extend_from_slice(unmoved);
        rest = match from.split_first() {
            Some((first, others)) if first.workload.uid == *uid => others,
            _ => from,
        };
        if let Some(ports) = moved.ports {
            let workload = moved.workload;
            after.push(Endpoint { workload, ports });
        }
    }
    after.extend_from_slice(rest);
    after.shrink_to_fit();
    after
}

/// The backends of services that nobody has told of.
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
