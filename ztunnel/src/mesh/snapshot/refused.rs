//! Addresses of what the control plane has told and this node could not read: whoever has them is
//! in the mesh, and nobody knows as what.

use std::net::IpAddr;
use std::sync::Arc;

use foldhash::HashMap;

use super::super::NetworkAddress;

/// Few, so that a copy is made whole when one of them changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Refused {
    names: HashMap<Arc<str>, Vec<NetworkAddress>>,
    addresses: HashMap<IpAddr, Vec<Claim>>,
}

/// Who says that an address is its own.
#[derive(Debug, Clone)]
struct Claim {
    network: Arc<str>,
    name: Arc<str>,
}

impl Refused {
    /// The name of what has an address in a network.
    pub(super) fn at(&self, network: &str, address: IpAddr) -> Option<&Arc<str>> {
        let claims = self.addresses.get(&address.to_canonical())?;
        let claim = claims.iter().find(|claim| *claim.network == *network)?;
        Some(&claim.name)
    }

    /// Takes one in; returns whether that is new.
    pub(super) fn put(&mut self, name: Arc<str>, addresses: Vec<NetworkAddress>) -> bool {
        if self.names.get(&name) == Some(&addresses) {
            return false;
        }
        self.remove(&name);
        for NetworkAddress { network, address } in &addresses {
            let claims = self.addresses.entry(address.to_canonical()).or_default();
            claims.push(Claim {
                network: network.clone(),
                name: name.clone(),
            });
        }
        self.names.insert(name, addresses);
        true
    }

    /// Whether there was one of this name; it is gone now.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let Some(addresses) = self.names.remove(name) else {
            return false;
        };
        for NetworkAddress { address, .. } in addresses {
            let address = address.to_canonical();
            if let Some(claims) = self.addresses.get_mut(&address) {
                claims.retain(|claim| *claim.name != *name);
                if claims.is_empty() {
                    self.addresses.remove(&address);
                }
            }
        }
        true
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{Change, Snapshot};

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
        assert_eq!(name(&mesh, "net", "10.0.0.1").as_deref(), Some("a"));
        assert_eq!(name(&mesh, "net", "10.0.0.2").as_deref(), Some("a"));
        assert_eq!(name(&mesh, "", "10.0.0.1"), None);
        assert!(mesh.apply(Change::Readable("a".into())));
        assert_eq!(name(&mesh, "net", "10.0.0.1").as_deref(), Some("b"));
        assert_eq!(name(&mesh, "net", "10.0.0.2"), None);
        assert!(!mesh.apply(Change::Readable("a".into())));
        assert!(mesh.apply(Change::Readable("b".into())));
        assert_eq!(name(&mesh, "net", "10.0.0.1"), None);
        assert_eq!(name(&before, "net", "10.0.0.1").as_deref(), Some("a"));
    }
}
