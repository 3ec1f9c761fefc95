//! How a workload is reached: at an address of the right family, at a host name that has to be
//! resolved, or through the gateway of its network.

use std::net::IpAddr;
use std::sync::Arc;

use crate::{IpFamilies, Workload};

/// How a workload is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reachable<'a> {
    /// At this address.
    Address(IpAddr),
    /// At an address of this host name, which has to be resolved first.
    Hostname(&'a Arc<str>),
    /// Through the network gateway that it names: it is in another network.
    RemoteNetwork,
}

/// Which address of a workload is used.
#[derive(Debug, Clone, Copy)]
pub(super) struct AddressPreference<'a> {
    /// An address of the same family is preferred.
    pub(super) like: IpAddr,
    /// The families that the service allows.
    pub(super) families: IpFamilies,
    /// The host names that were resolved.
    pub(super) resolved: &'a [(Arc<str>, IpAddr)],
}

impl AddressPreference<'_> {
    /// How a workload of the source's own network is reached; `None` if it has neither an address
    /// of an allowed family nor a host name.
    pub(super) fn reach<'w>(&self, workload: &'w Workload) -> Option<Reachable<'w>> {
        let allowed = |ip: &&IpAddr| match self.families {
            IpFamilies::Automatic | IpFamilies::Dual => true,
            IpFamilies::Ipv4Only => ip.is_ipv4(),
            IpFamilies::Ipv6Only => ip.is_ipv6(),
        };
        let same_family = |ip: &&IpAddr| ip.is_ipv4() == self.like.is_ipv4();
        let addresses = || workload.workload_ips.iter().filter(allowed);
        let preferred = addresses().find(same_family);
        if let Some(address) = preferred.or_else(|| addresses().next()) {
            return Some(Reachable::Address(*address));
        }
        // The host name is used for a workload without addresses, not for one whose addresses are
        // of the wrong family.
        let name = Some(&workload.hostname)
            .filter(|name| !name.is_empty() && workload.workload_ips.is_empty())?;
        let resolved = self.resolved.iter().find(|(resolved, _)| resolved == name);
        Some(resolved.map_or(Reachable::Hostname(name), |(_, address)| {
            Reachable::Address(*address)
        }))
    }
}

/// Chooses an address that a host name was resolved to: one of the same family as `like` if there
/// is one, otherwise any, by the random number.
#[must_use]
pub fn choose_address(addresses: &[IpAddr], like: IpAddr, random: u64) -> Option<IpAddr> {
    let same_family = |ip: &&IpAddr| ip.is_ipv4() == like.is_ipv4();
    let index = |count: usize| {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        usize::try_from(random.checked_rem(count)?).ok()
    };
    match addresses.iter().filter(same_family).count() {
        0 => addresses.get(index(addresses.len())?).copied(),
        count => {
            let mut same = addresses.iter().filter(same_family);
            same.nth(index(count)?).copied()
        }
    }
}
