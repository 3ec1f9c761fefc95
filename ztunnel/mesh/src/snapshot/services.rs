//! Services by host name, and under one name by namespace.

use std::sync::Arc;

use super::backends::Endpoint;
use super::index::{Index, Iter, Keyed};
use crate::{Identity, NamespacedHostname, Service, Visibility};

/// A service with all that is needed to choose one of its backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    /// The service.
    pub service: Arc<Service>,
    /// Its backends, in the order of their uids.
    pub endpoints: Vec<Endpoint>,
    /// The identities among its `subject_alt_names`: a backend may present one of these instead of
    /// its own.
    pub identities: Vec<Identity>,
}

impl ServiceEntry {
    pub(super) fn new(service: Arc<Service>, endpoints: Vec<Endpoint>) -> Self {
        let names = service.subject_alt_names.iter();
        let identities = names.filter_map(|name| name.parse().ok()).collect();
        Self {
            service,
            endpoints,
            identities,
        }
    }

    fn is_visible_from(&self, namespace: &str) -> bool {
        match self.service.visibility {
            Visibility::Public => true,
            Visibility::Namespace => *self.service.namespace == *namespace,
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Services {
    hosts: Index<Host>,
    len: usize,
}

/// The services of one host name, in the order of their namespaces.
#[derive(Debug, Clone)]
struct Host {
    name: Arc<str>,
    entries: Vec<Arc<ServiceEntry>>,
}

impl Host {
    fn position(&self, namespace: &str) -> Result<usize, usize> {
        self.entries
            .binary_search_by(|entry| (*entry.service.namespace).cmp(namespace))
    }
}

impl Services {
    pub(super) fn get(&self, namespace: &str, hostname: &str) -> Option<&Arc<ServiceEntry>> {
        let host = self.hosts.get(hostname)?;
        host.entries.get(host.position(namespace).ok()?)
    }

    pub(super) fn get_mut(&mut self, key: &NamespacedHostname) -> Option<&mut Arc<ServiceEntry>> {
        let host = self.hosts.get_mut(&key.hostname)?;
        let at = host.position(&key.namespace).ok()?;
        host.entries.get_mut(at)
    }

    pub(super) fn named(&self, hostname: &str) -> &[Arc<ServiceEntry>] {
        self.hosts.get(hostname).map_or(&[], |host| &host.entries)
    }

    /// The service that a host name belongs to for a namespace, among those that are accepted.
    pub(super) fn resolve(
        &self,
        hostname: &str,
        namespace: &str,
        accepts: impl Fn(&ServiceEntry) -> bool,
    ) -> Option<&Arc<ServiceEntry>> {
        let entries = self.named(hostname).iter();
        preferred(entries.filter(|entry| accepts(entry)), namespace)
    }

    /// Adds a service or replaces the one with its key.
    pub(super) fn insert(&mut self, entry: ServiceEntry) {
        let (service, entry) = (entry.service.clone(), Arc::new(entry));
        let Some(host) = self.hosts.get_mut(&service.hostname) else {
            self.len += 1;
            self.hosts.insert(Host {
                name: service.hostname.clone(),
                entries: vec![entry],
            });
            return;
        };
        match host.position(&service.namespace) {
            Ok(at) => host.entries[at] = entry,
            Err(at) => {
                self.len += 1;
                host.entries.insert(at, entry);
            }
        }
    }

    pub(super) fn remove(&mut self, key: &NamespacedHostname) -> Option<Arc<ServiceEntry>> {
        let host = self.hosts.get_mut(&key.hostname)?;
        let removed = host.entries.remove(host.position(&key.namespace).ok()?);
        if host.entries.is_empty() {
            self.hosts.remove(&key.hostname);
        }
        self.len -= 1;
        Some(removed)
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<ServiceEntry>> {
        Entries {
            hosts: self.hosts.iter(),
            host: [].iter(),
            left: self.len,
        }
    }
}

/// The service that is preferred for a namespace: that of the namespace, or the canonical one, or the
/// first one. A service that is visible in its own namespace only is not chosen for another one.
pub(super) fn preferred<'a>(
    entries: impl Iterator<Item = &'a Arc<ServiceEntry>> + Clone,
    namespace: &str,
) -> Option<&'a Arc<ServiceEntry>> {
    let visible = || {
        let entries = entries.clone();
        entries.filter(|entry| entry.is_visible_from(namespace))
    };
    visible()
        .find(|entry| *entry.service.namespace == *namespace)
        .or_else(|| visible().find(|entry| entry.service.canonical))
        .or_else(|| visible().next())
}

struct Entries<'a> {
    hosts: Iter<'a, Host>,
    host: std::slice::Iter<'a, Arc<ServiceEntry>>,
    left: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = &'a Arc<ServiceEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.host.next() {
                self.left = self.left.saturating_sub(1);
                return Some(entry);
            }
            self.host = self.hosts.next()?.entries.iter();
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Entries<'_> {}

impl Keyed for Host {
    type Key<'k> = &'k str;

    fn key(&self) -> &str {
        &self.name
    }

    fn has(&self, key: &str) -> bool {
        *self.name == *key
    }
}
