//! Policies by key and by scope.

use std::sync::Arc;

use super::index::{Index, Keyed};
use crate::{Policy, PolicyScope, Workload};

#[derive(Debug, Clone, Default)]
pub(super) struct Policies {
    all: Index<Named>,
    scopes: Index<Scope>,
}

#[derive(Debug, Clone)]
struct Named {
    key: Arc<str>,
    policy: Arc<Policy>,
}

/// The policies of one namespace or (`None`) of the whole mesh, in the order of their names.
#[derive(Debug, Clone)]
struct Scope {
    namespace: Option<Arc<str>>,
    policies: Vec<Arc<Policy>>,
}

/// The namespace whose workloads a policy applies to, `Some(None)` for all workloads; `None` for a
/// selector policy.
fn scope(policy: &Policy) -> Option<Option<&Arc<str>>> {
    match policy.scope {
        PolicyScope::Global => Some(None),
        PolicyScope::Namespace => Some(Some(&policy.namespace)),
        PolicyScope::WorkloadSelector => None,
    }
}

impl Policies {
    pub(super) fn for_workload<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = &'a Arc<Policy>> {
        let everywhere = self.scopes.get(None);
        let of_namespace = self.scopes.get(Some(&*workload.namespace));
        let selected = workload
            .authorization_policies
            .iter()
            .filter_map(|key| self.all.get(key))
            .map(|named| &named.policy)
            .filter(|policy| policy.scope == PolicyScope::WorkloadSelector);
        everywhere
            .into_iter()
            .chain(of_namespace)
            .flat_map(|scope| &scope.policies)
            .chain(selected)
    }

    pub(super) fn get(&self, key: &str) -> Option<&Arc<Policy>> {
        self.all.get(key).map(|named| &named.policy)
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.all.iter().map(|named| &named.policy)
    }

    /// Adds a policy or replaces the one with its key. Returns whether this changes anything.
    pub(super) fn insert(&mut self, policy: Policy) -> bool {
        let key: Arc<str> = policy.key().into();
        if let Some(before) = self.all.get(&key) {
            if *before.policy == policy {
                return false;
            }
            self.remove(&key);
        }
        let policy = Arc::new(policy);
        if let Some(namespace) = scope(&policy) {
            self.put_in_scope(namespace.cloned(), &policy);
        }
        self.all.insert(Named { key, policy });
        true
    }

    /// Returns whether the policy existed.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        let Some(Named { policy, .. }) = self.all.remove(key) else {
            return false;
        };
        let Some(namespace) = scope(&policy) else {
            return true;
        };
        let namespace = namespace.map(|name| &**name);
        if let Some(scope) = self.scopes.get_mut(namespace) {
            scope.policies.retain(|other| !Arc::ptr_eq(other, &policy));
            if scope.policies.is_empty() {
                self.scopes.remove(namespace);
            }
        }
        true
    }

    fn put_in_scope(&mut self, namespace: Option<Arc<str>>, policy: &Arc<Policy>) {
        if let Some(scope) = self.scopes.get_mut(namespace.as_deref()) {
            let policies = &mut scope.policies;
            let at = policies.partition_point(|other| name(other) < name(policy));
            policies.insert(at, policy.clone());
        } else {
            let policies = vec![policy.clone()];
            self.scopes.insert(Scope {
                namespace,
                policies,
            });
        }
    }
}

fn name(policy: &Policy) -> (&str, &str) {
    (&policy.namespace, &policy.name)
}

impl Keyed for Named {
    type Key<'k> = &'k str;

    fn key(&self) -> &str {
        &self.key
    }

    fn has(&self, key: &str) -> bool {
        *self.key == *key
    }
}

impl Keyed for Scope {
    type Key<'k> = Option<&'k str>;

    fn key(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    fn has(&self, key: Option<&str>) -> bool {
        self.key() == key
    }
}
