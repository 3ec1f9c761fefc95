//! The owner of each address. Several workloads may claim one address: pods on their node's network
//! share its address, and a new pod may get the address of a pod whose removal arrives later. A
//! claimant that lost an address is kept, and gets it back when the owner is removed.

use std::hash::Hash;
use std::iter;
use std::sync::Arc;

use super::index::{Index, Keyed};
use crate::{NetworkMode, Service, Workload};

/// A workload, service or placeholder that can claim an address.
pub(super) trait Claimant: Clone {
    /// Whether the other value is another version of the same object.
    fn is(&self, other: &Self) -> bool;

    /// The precedence of its claims; of two claims with equal precedence the later one wins.
    fn precedence(&self) -> Precedence;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Precedence {
    /// The address is that of the node.
    Shared,
    /// The address is its own.
    Own,
}

impl Claimant for Workload {
    fn is(&self, other: &Self) -> bool {
        self.uid == other.uid
    }

    fn precedence(&self) -> Precedence {
        match self.network_mode {
            NetworkMode::HostNetwork => Precedence::Shared,
            NetworkMode::Standard => Precedence::Own,
        }
    }
}

impl Claimant for Service {
    fn is(&self, other: &Self) -> bool {
        self.hostname == other.hostname && self.namespace == other.namespace
    }

    fn precedence(&self) -> Precedence {
        Precedence::Own
    }
}

/// All claims to addresses or ranges `K`, by network.
#[derive(Debug, Clone)]
pub(super) struct Claims<K, T> {
    networks: Index<Network<K, T>>,
}

#[derive(Debug, Clone)]
struct Network<K, T> {
    name: Arc<str>,
    claims: Index<Claim<K, T>>,
}

#[derive(Debug, Clone)]
struct Claim<K, T> {
    at: K,
    holder: Arc<T>,
    /// The other claimants; the last one is next in line.
    rivals: Option<Box<Rivals<T>>>,
}

/// Behind one pointer, because few addresses have rivals.
#[derive(Debug, Clone)]
struct Rivals<T>(Vec<Arc<T>>);

impl<K, T> Default for Claims<K, T> {
    fn default() -> Self {
        Self {
            networks: Index::default(),
        }
    }
}

impl<K: Hash + Eq + Copy + 'static, T: Claimant + 'static> Claims<K, T> {
    /// The owner of an address.
    pub(super) fn get(&self, network: &str, at: K) -> Option<&Arc<T>> {
        let network = self.networks.get(network)?;
        network.claims.get(at).map(|claim| &claim.holder)
    }

    /// All claimants of an address: the owner, then the others in the order in which they would get it.
    pub(super) fn all(&self, network: &str, at: K) -> impl Iterator<Item = &Arc<T>> + Clone {
        let network = self.networks.get(network);
        let claim = network.and_then(|network| network.claims.get(at));
        claim.into_iter().flat_map(|claim| {
            let rivals = claim.rivals.as_deref().map_or(&[][..], |rivals| &rivals.0);
            iter::once(&claim.holder).chain(rivals.iter().rev())
        })
    }

    /// Adds a claim. An object that has a claim already keeps its position. Returns whether this is
    /// the first claim to the address.
    pub(super) fn claim(&mut self, network: &Arc<str>, at: K, claimant: &Arc<T>) -> bool {
        if self.networks.get(network).is_none() {
            self.networks.insert(Network {
                name: network.clone(),
                claims: Index::default(),
            });
        }
        let Some(network) = self.networks.get_mut(network) else {
            return false;
        };
        if let Some(claim) = network.claims.get_mut(at) {
            claim.add(claimant);
            return false;
        }
        let (holder, rivals) = (claimant.clone(), None);
        network.claims.insert(Claim { at, holder, rivals });
        true
    }

    /// Removes the claim of this version of the object; the claim of a newer version stays. Returns
    /// whether the address has no claim any more.
    pub(super) fn release(&mut self, network: &str, at: K, claimant: &Arc<T>) -> bool {
        let Some(found) = self.networks.get_mut(network) else {
            return false;
        };
        let Some(claim) = found.claims.get_mut(at) else {
            return false;
        };
        if claim.remove(claimant) {
            return false;
        }
        found.claims.remove(at);
        if found.claims.is_empty() {
            self.networks.remove(network);
        }
        true
    }
}

impl<K, T: Claimant> Claim<K, T> {
    fn add(&mut self, claimant: &Arc<T>) {
        let alone = self.rivals.is_none();
        if let Some(present) = self.find_mut(claimant) {
            if alone || present.precedence() == claimant.precedence() {
                *present = claimant.clone();
                return;
            }
            let former = present.clone();
            self.remove(&former);
        }
        let rivals = &mut self
            .rivals
            .get_or_insert_with(|| Box::new(Rivals(Vec::new())))
            .0;
        if claimant.precedence() >= self.holder.precedence() {
            rivals.push(std::mem::replace(&mut self.holder, claimant.clone()));
        } else {
            let at = rivals.partition_point(|rival| rival.precedence() <= claimant.precedence());
            rivals.insert(at, claimant.clone());
        }
    }

    /// The present version of a claimant.
    fn find_mut(&mut self, claimant: &Arc<T>) -> Option<&mut Arc<T>> {
        if self.holder.is(claimant) {
            return Some(&mut self.holder);
        }
        let rivals = &mut self.rivals.as_mut()?.0;
        rivals.iter_mut().find(|rival| rival.is(claimant))
    }

    /// Returns whether a claimant is left.
    fn remove(&mut self, claimant: &Arc<T>) -> bool {
        let Some(Rivals(rivals)) = self.rivals.as_deref_mut() else {
            return !Arc::ptr_eq(&self.holder, claimant);
        };
        if Arc::ptr_eq(&self.holder, claimant) {
            let Some(next) = rivals.pop() else {
                return false;
            };
            self.holder = next;
        } else {
            rivals.retain(|rival| !Arc::ptr_eq(rival, claimant));
        }
        if rivals.is_empty() {
            self.rivals = None;
        }
        true
    }
}

impl<K, T> Keyed for Network<K, T>
where
    Self: Clone,
{
    type Key<'k> = &'k str;

    fn key(&self) -> &str {
        &self.name
    }

    fn has(&self, key: &str) -> bool {
        *self.name == *key
    }
}

impl<K: Hash + Eq + Copy, T> Keyed for Claim<K, T>
where
    Self: Clone,
{
    type Key<'k> = K;

    fn key(&self) -> K {
        self.at
    }

    fn has(&self, key: K) -> bool {
        self.at == key
    }
}
