//! Virtual addresses that are given as ranges. A lookup tries each prefix length in use, the longest
//! first: there are few, and at most 33 for IPv4 and 129 for IPv6.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use super::claims::Claims;
use crate::{NetworkRange, Service};

#[derive(Debug, Clone, Default)]
pub(super) struct Ranges {
    claims: Claims<IpNet, Service>,
    v4: Lengths,
    v6: Lengths,
}

/// The number of ranges by prefix length.
type Lengths = BTreeMap<u8, usize>;

impl Ranges {
    /// The ranges that contain a canonical address, the longest prefix first: for each the services
    /// that claim it.
    pub(super) fn around(
        &self,
        network: &str,
        address: IpAddr,
    ) -> impl Iterator<Item = impl Iterator<Item = &Arc<Service>> + Clone> {
        let lengths = if address.is_ipv4() {
            &self.v4
        } else {
            &self.v6
        };
        let ranges = lengths.keys().rev();
        let ranges = ranges.filter_map(move |length| IpNet::new(address, *length).ok());
        ranges.map(move |range| self.claims.all(network, range.trunc()))
    }

    pub(super) fn claim(&mut self, given: &NetworkRange, service: &Arc<Service>) {
        let range = canonical(given.range);
        if self.claims.claim(&given.network, range, service) {
            *self.lengths(range).entry(range.prefix_len()).or_default() += 1;
        }
    }

    pub(super) fn release(&mut self, given: &NetworkRange, service: &Arc<Service>) {
        let range = canonical(given.range);
        if !self.claims.release(&given.network, range, service) {
            return;
        }
        let lengths = self.lengths(range);
        if let Some(ranges) = lengths.get_mut(&range.prefix_len()) {
            *ranges = ranges.saturating_sub(1);
            if *ranges == 0 {
                lengths.remove(&range.prefix_len());
            }
        }
    }

    fn lengths(&mut self, range: IpNet) -> &mut Lengths {
        match range {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
        }
    }
}

/// Without host bits; a range of IPv4-mapped IPv6 addresses is a range of IPv4 addresses.
fn canonical(range: IpNet) -> IpNet {
    let mapped = match range {
        IpNet::V6(range) => range
            .addr()
            .to_ipv4_mapped()
            .zip(range.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    mapped
        .and_then(|(address, length)| Ipv4Net::new(address, length).ok())
        .map_or(range, IpNet::V4)
        .trunc()
}
