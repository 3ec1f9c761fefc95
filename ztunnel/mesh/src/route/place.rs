//! Where a workload is reached: an address of the right family, a name to resolve, or only
//! through the gateway of its network.

use std::net::IpAddr;
use std::sync::Arc;

use crate::{IpFamilies, Workload};

/// Where a workload is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reachable<'a> {
    /// At an address.
    At(IpAddr),
    /// At an address that its host name has to be resolved to first.
    Named(&'a Arc<str>),
    /// In another network: through the gateway that it names.
    Beyond,
}

/// What an address is wanted for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// The family that was dialled goes first.
    pub(super) like: IpAddr,
    /// What the service allows.
    pub(super) families: IpFamilies,
    /// What names have been resolved to.
    pub(super) resolved: &'a [(Arc<str>, IpAddr)],
}

impl Wanted<'_> {
    /// Where a workload of the own network is; none where it has neither an address of an
    /// allowed family nor a name.
    pub(super) fn place<'w>(&self, workload: &'w Workload) -> Option<Reachable<'w>> {
        let allowed = |ip: &&IpAddr| match self.families {
            IpFamilies::Automatic | IpFamilies::Dual => true,
            IpFamilies::Ipv4Only => ip.is_ipv4(),
            IpFamilies::Ipv6Only => ip.is_ipv6(),
        };
        let alike = |ip: &&IpAddr| ip.is_ipv4() == self.like.is_ipv4();
        let addresses = || workload.workload_ips.iter().filter(allowed);
        if let Some(address) = addresses().find(alike).or_else(|| addresses().next()) {
            return Some(Reachable::At(*address));
        }
        // A name stands for a workload without addresses, not for one whose addresses are of the
        // wrong family.
        let name = Some(&workload.hostname)
            .filter(|name| !name.is_empty() && workload.workload_ips.is_empty())?;
        let known = self.resolved.iter().find(|(known, _)| known == name);
        Some(known.map_or(Reachable::Named(name), |(_, address)| {
            Reachable::At(*address)
        }))
    }
}

/// One of the addresses that a name stands for: of the family that was dialled where there is one,
/// and by the dice among those.
#[must_use]
pub fn choose_address(addresses: &[IpAddr], like: IpAddr, random: u64) -> Option<IpAddr> {
    let alike = |ip: &&IpAddr| ip.is_ipv4() == like.is_ipv4();
    let roll = |count: usize| {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        usize::try_from(random.checked_rem(count)?).ok()
    };
    match addresses.iter().filter(alike).count() {
        0 => addresses.get(roll(addresses.len())?).copied(),
        count => addresses.iter().filter(alike).nth(roll(count)?).copied(),
    }
}
