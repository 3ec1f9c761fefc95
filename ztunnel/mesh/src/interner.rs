//! Shares equal values. Names, namespaces, nodes, identities, gateways, and the lists of ports,
//! services and policies repeat in thousands of workloads. All decoders take them from one
//! interner, so that a snapshot holds each value once.
//!
//! The interner drops values that no object uses when it has grown to twice its size after the last
//! clean-up. So a mesh that changes for months uses no more memory than a fresh one. A text of a
//! single object (a uid, the name of a pod) is better allocated without the interner.

use std::borrow::Borrow;
use std::fmt::Write as _;
use std::hash::Hash;
use std::sync::Arc;

use foldhash::{HashSet, HashSetExt as _};

use super::{
    Backed, GatewayAddress, Identity, Locality, NamespacedHostname, ParseIdentityError, Ports,
};

/// The values that objects share.
#[derive(Debug)]
pub struct Interner {
    texts: Shared<str>,
    ports: Shared<Ports>,
    services: Shared<Backed>,
    policies: Shared<[Arc<str>]>,
    gateways: Shared<GatewayAddress>,
    localities: Shared<Locality>,
    /// The buffer in which an identity is formatted before it is looked up.
    scratch: String,
}

impl Interner {
    /// An empty interner.
    #[must_use]
    pub fn new() -> Self {
        Self {
            texts: Shared::new(),
            ports: Shared::new(),
            services: Shared::new(),
            policies: Shared::new(),
            gateways: Shared::new(),
            localities: Shared::new(),
            scratch: String::new(),
        }
    }

    /// The shared copy of a text.
    pub fn get(&mut self, text: &str) -> Arc<str> {
        if text.is_empty() {
            // The standard library shares one empty text.
            return Arc::default();
        }
        self.texts.share(text)
    }

    /// The identity of a service account, its text shared.
    ///
    /// # Errors
    /// As [`Identity::new`].
    pub fn identity(
        &mut self,
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Identity, ParseIdentityError> {
        let mut text = std::mem::take(&mut self.scratch);
        text.clear();
        let formatted = Identity::format(trust_domain, namespace, service_account);
        let written = write!(text, "{formatted}");
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
        let identity = Identity::parse_shared(&text, |text| self.get(text));
        self.scratch = text;
        identity
    }

    /// The shared copy of a list of ports.
    pub fn ports(&mut self, ports: Ports) -> Arc<Ports> {
        self.ports.share(ports)
    }

    /// The shared copy of a list of services that a workload backs.
    pub fn services(&mut self, services: Vec<(NamespacedHostname, Arc<Ports>)>) -> Arc<Backed> {
        self.services.share(services)
    }

    /// The shared copy of a list of policy keys. Repeated keys are dropped; the order is kept.
    pub fn policies<'k>(&mut self, keys: impl IntoIterator<Item = &'k str>) -> Arc<[Arc<str>]> {
        let mut seen = HashSet::new();
        let keys = keys.into_iter().filter(|key| seen.insert(*key));
        let keys: Vec<Arc<str>> = keys.map(|key| self.get(key)).collect();
        self.policies.share(keys)
    }

    /// The shared copy of a waypoint or gateway.
    pub fn gateway(&mut self, gateway: GatewayAddress) -> Arc<GatewayAddress> {
        self.gateways.share(gateway)
    }

    /// The shared copy of a locality.
    pub fn locality(&mut self, locality: Locality) -> Arc<Locality> {
        self.localities.share(locality)
    }
}

impl Default for Interner {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
struct Shared<T: ?Sized> {
    items: HashSet<Arc<T>>,
    /// The number of items at which unused ones are dropped.
    limit: usize,
}

impl<T: ?Sized + Hash + Eq> Shared<T> {
    /// A clean-up of fewer items is not worth its time.
    const MIN_LIMIT: usize = 1024;

    fn new() -> Self {
        Self {
            items: HashSet::new(),
            limit: Self::MIN_LIMIT,
        }
    }

    /// The shared copy of a value.
    fn share<V: Borrow<T> + Into<Arc<T>>>(&mut self, value: V) -> Arc<T> {
        match self.items.get(value.borrow()) {
            Some(shared) => shared.clone(),
            None => self.add(value.into()),
        }
    }

    fn add(&mut self, item: Arc<T>) -> Arc<T> {
        if self.items.len() >= self.limit {
            self.items.retain(|item| Arc::strong_count(item) > 1);
            self.limit = Self::MIN_LIMIT.max(self.items.len() * 2);
            self.items.shrink_to(self.limit);
        }
        self.items.insert(item.clone());
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_shared() {
        let mut interner = Interner::new();
        assert!(Arc::ptr_eq(&interner.get("a"), &interner.get("a")));
        assert!(Arc::ptr_eq(&interner.get(""), &interner.get("")));
        let ports = || Ports::from([(80, 8080)]);
        assert!(Arc::ptr_eq(
            &interner.ports(ports()),
            &interner.ports(ports())
        ));
        let mut identity = || interner.identity("td", "a", "b").unwrap();
        let (one, two) = (identity(), identity());
        assert!(std::ptr::eq(one.as_str(), two.as_str()));
        assert_eq!(one, Identity::new("td", "a", "b").unwrap());
        assert_eq!(
            interner.identity("td", "a/b", "c"),
            Identity::new("td", "a/b", "c")
        );
    }

    #[test]
    fn repeated_policy_keys_are_dropped() {
        let mut interner = Interner::new();
        let keys = |keys: &[Arc<str>]| keys.iter().map(ToString::to_string).collect::<Vec<_>>();
        let listed = interner.policies(["n/b", "n/a", "n/b", "n/c", "n/a"]);
        assert_eq!(keys(&listed), ["n/b", "n/a", "n/c"]);
        let once = interner.policies(["n/b", "n/a", "n/c"]);
        assert!(Arc::ptr_eq(&listed, &once));
        let other_order = interner.policies(["n/a", "n/b", "n/c"]);
        assert_eq!(keys(&other_order), ["n/a", "n/b", "n/c"]);
    }

    #[test]
    fn unused_values_are_dropped() {
        let mut interner = Interner::new();
        let held: Vec<_> = (0..500)
            .map(|n| interner.get(&format!("held {n}")))
            .collect();
        for n in 0..100_000_u32 {
            interner.get(&format!("passing {n}"));
            interner.ports(Ports::from([(80, u16::try_from(n % 60_000).unwrap())]));
        }
        assert!(
            interner.texts.items.len() <= 2048,
            "{}",
            interner.texts.items.len()
        );
        assert!(interner.texts.items.capacity() <= 4096);
        assert!(interner.ports.items.len() <= 2048);
        for (n, text) in held.iter().enumerate() {
            assert!(Arc::ptr_eq(text, &interner.get(&format!("held {n}"))));
        }
    }
}
