//! Addresses of what the control plane has told and this node could not read: whoever has them is
//! in the mesh, and nobody knows as what.

use std::net::IpAddr;
use std::sync::Arc;

use super::claims::{Claimant, Claims, Standing};
use super::index::{Index, Keyed};
use crate::NetworkAddress;

#[derive(Debug, Clone, Default)]
pub(super) struct Refused {
    named: Index<Arc<Stranger>>,
    addresses: Claims<IpAddr, Stranger>,
}

/// Of what could not be read, all that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stranger {
    name: Arc<str>,
    addresses: Vec<NetworkAddress>,
}

impl Refused {
    /// The name of what has an address in a network.
    pub(super) fn at(&self, network: &str, address: IpAddr) -> Option<&Arc<str>> {
        let found = self.addresses.get(network, address.to_canonical())?;
        Some(&found.name)
    }

    /// Takes one in; returns whether that is new.
    pub(super) fn put(&mut self, name: Arc<str>, addresses: Vec<NetworkAddress>) -> bool {
        let stranger = Arc::new(Stranger { name, addresses });
        if self.named.get(&stranger.name) == Some(&stranger) {
            return false;
        }
        for NetworkAddress { network, address } in &stranger.addresses {
            let address = address.to_canonical();
            self.addresses.claim(network, address, &stranger);
        }
        if let Some(before) = self.named.insert(stranger) {
            self.release(&before);
        }
        true
    }

    /// Whether there was one of this name; it is gone now.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let removed = self.named.remove(name);
        if let Some(stranger) = &removed {
            self.release(stranger);
        }
        removed.is_some()
    }

    fn release(&mut self, stranger: &Arc<Stranger>) {
        for NetworkAddress { network, address } in &stranger.addresses {
            let address = address.to_canonical();
            self.addresses.release(network, address, stranger);
        }
    }
}

impl Claimant for Stranger {
    fn is(&self, other: &Self) -> bool {
        self.name == other.name
    }

    fn standing(&self) -> Standing {
        Standing::Own
    }
}

impl Keyed for Arc<Stranger> {
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
    fn what_was_refused_is_known_by_its_addresses_until_it_can_be_read_or_is_gone() {
        let mut mesh = Snapshot::default();
        let refused = |name: &str, addresses: &[NetworkAddress]| Change::Refused {
            name: name.into(),
            addresses: addresses.to_vec(),
        };
        let (one, mapped) = (at("net", "10.0.0.1"), at("net", "::ffff:10.0.0.2"));
        assert!(mesh.apply(refused("a", &[one.clone(), mapped.clone()])));
        assert!(!mesh.apply(refused("a", &[one.clone(), mapped])));
        let before = mesh.clone();
        assert!(mesh.apply(refused("b", &[one])));
        let name = |mesh: &Snapshot, network: &str, address: &str| {
            let found = mesh.refused_at(network, address.parse().unwrap());
            found.map(ToString::to_string)
        };
        assert_eq!(name(&mesh, "net", "10.0.0.1").as_deref(), Some("b"));
        assert_eq!(name(&mesh, "net", "10.0.0.2").as_deref(), Some("a"));
        assert_eq!(name(&mesh, "", "10.0.0.1"), None);
        assert!(mesh.apply(Change::Readable("b".into())));
        assert_eq!(name(&mesh, "net", "10.0.0.1").as_deref(), Some("a"));
        assert!(!mesh.apply(Change::Readable("b".into())));
        assert!(mesh.apply(refused("a", &[at("net", "10.0.0.1")])));
        assert_eq!(name(&mesh, "net", "10.0.0.1").as_deref(), Some("a"));
        assert_eq!(name(&mesh, "net", "10.0.0.2"), None);
        assert!(mesh.apply(Change::Readable("a".into())));
        assert_eq!(name(&mesh, "net", "10.0.0.1"), None);
        assert_eq!(name(&before, "net", "10.0.0.1").as_deref(), Some("a"));
    }
}
