//! Placeholders of workloads and services that could not be decoded: their addresses belong to the
//! mesh, but nothing else is known of them.

use std::net::IpAddr;
use std::sync::Arc;

use super::claims::{Claimant, Claims, Precedence};
use super::index::{Index, Keyed};
use crate::NetworkAddress;

#[derive(Debug, Clone, Default)]
pub(super) struct Placeholders {
    named: Index<Arc<Placeholder>>,
    addresses: Claims<IpAddr, Placeholder>,
}

/// All that is known of a resource that could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Placeholder {
    name: Arc<str>,
    addresses: Vec<NetworkAddress>,
}

impl Placeholders {
    /// The name of the resource with an address in a network.
    pub(super) fn at(&self, network: &str, address: IpAddr) -> Option<&Arc<str>> {
        let found = self.addresses.get(network, address.to_canonical())?;
        Some(&found.name)
    }

    /// Adds or replaces a placeholder; returns whether this changes anything.
    pub(super) fn put(&mut self, name: Arc<str>, addresses: Vec<NetworkAddress>) -> bool {
        let placeholder = Arc::new(Placeholder { name, addresses });
        if self.named.get(&placeholder.name) == Some(&placeholder) {
            return false;
        }
        for NetworkAddress { network, address } in &placeholder.addresses {
            let address = address.to_canonical();
            self.addresses.claim(network, address, &placeholder);
        }
        if let Some(before) = self.named.insert(placeholder) {
            self.release(&before);
        }
        true
    }

    /// Removes a placeholder; returns whether it existed.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let removed = self.named.remove(name);
        if let Some(placeholder) = &removed {
            self.release(placeholder);
        }
        removed.is_some()
    }

    fn release(&mut self, placeholder: &Arc<Placeholder>) {
        for NetworkAddress { network, address } in &placeholder.addresses {
            let address = address.to_canonical();
            self.addresses.release(network, address, placeholder);
        }
    }
}

impl Claimant for Placeholder {
    fn is(&self, other: &Self) -> bool {
        self.name == other.name
    }

    fn precedence(&self) -> Precedence {
        Precedence::Own
    }
}

impl Keyed for Arc<Placeholder> {
    type Key<'k> = &'k str;

    fn key(&self) -> &str {
        &self.name
    }

    fn has(&self, key: &str) -> bool {
        *self.name == *key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Change, Snapshot};

    fn at(network: &str, address: &str) -> NetworkAddress {
        NetworkAddress {
            network: network.into(),
            address: address.parse().unwrap(),
        }
    }

    #[test]
    fn a_placeholder_has_its_addresses_until_it_is_removed() {
        let mut mesh = Snapshot::default();
        let refused = |name: &str, addresses: &[NetworkAddress]| Change::Placeholder {
            name: name.into(),
            addresses: addresses.to_vec(),
        };
        let (one, mapped) = (at("net", "10.0.0.1"), at("net", "::ffff:10.0.0.2"));
        assert!(mesh.apply(refused("a", &[one.clone(), mapped.clone()])));
        assert!(!mesh.apply(refused("a", &[one.clone(), mapped])));
        let before = mesh.clone();
        assert!(mesh.apply(refused("b", &[one])));
        let name = |mesh: &Snapshot, network: &str, address: &str| {
            let found = mesh.placeholder_at(network, address.parse().unwrap());
            found.map(ToString::to_string)
        };
        assert_eq!(name(&mesh, "net", "10.0.0.1").as_deref(), Some("b"));
        assert_eq!(name(&mesh, "net", "10.0.0.2").as_deref(), Some("a"));
        assert_eq!(name(&mesh, "", "10.0.0.1"), None);
        assert!(mesh.apply(Change::RemovePlaceholder("b".into())));
        assert_eq!(name(&mesh, "net", "10.0.0.1").as_deref(), Some("a"));
        assert!(!mesh.apply(Change::RemovePlaceholder("b".into())));
        assert!(mesh.apply(refused("a", &[at("net", "10.0.0.1")])));
        assert_eq!(name(&mesh, "net", "10.0.0.1").as_deref(), Some("a"));
        assert_eq!(name(&mesh, "net", "10.0.0.2"), None);
        assert!(mesh.apply(Change::RemovePlaceholder("a".into())));
        assert_eq!(name(&mesh, "net", "10.0.0.1"), None);
        assert_eq!(name(&before, "net", "10.0.0.1").as_deref(), Some("a"));
    }
}
