//! Policies as Istio's API describes them, evaluated straight from the messages and without any
//! shortcut: rules ORed, clauses of a rule ANDed, matches of a clause ORed, kinds inside a match
//! ANDed, the values of a kind ORed, the `not_` kind negates. A policy without rules matches
//! nothing, an empty clause everything, a match with no kind set nothing.

use std::net::{IpAddr, SocketAddr};

use ztunnel::mesh::Identity;
use ztunnel::xds::proto::istio::security::string_match::MatchType;
use ztunnel::xds::proto::istio::security::{
    Action, Address, Authorization, Match, ServiceAccountMatch, StringMatch,
};

/// A connection.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who the client proved to be.
    pub identity: Option<Identity>,
    /// Its address.
    pub source: IpAddr,
    /// What it wants.
    pub destination: SocketAddr,
}

/// Whether policies, all of which apply, let a connection in.
#[must_use]
pub fn allowed(policies: &[Authorization], caller: &Caller) -> bool {
    let enforced: Vec<_> = policies.iter().filter(|policy| !policy.dry_run).collect();
    let of = |action| {
        let all = enforced.iter();
        all.filter(move |policy| policy.action == action as i32)
    };
    if of(Action::Deny).any(|policy| matches(policy, caller)) {
        return false;
    }
    of(Action::Allow).next().is_none() || of(Action::Allow).any(|policy| matches(policy, caller))
}

/// Whether any rule of a policy matches.
#[must_use]
pub fn matches(policy: &Authorization, caller: &Caller) -> bool {
    policy.rules.iter().any(|rule| {
        rule.clauses.iter().all(|clause| {
            clause.matches.is_empty() || clause.matches.iter().any(|kinds| one(kinds, caller))
        })
    })
}

fn one(kinds: &Match, caller: &Caller) -> bool {
    let identity = caller.identity.as_ref();
    let namespace = identity.map(Identity::namespace);
    let principal = identity.map(|identity| identity.as_str().trim_start_matches("spiffe://"));
    let in_namespace = |want: &StringMatch| text(want, namespace, "");
    let by_name = |want: &StringMatch| text(want, principal, "spiffe://");
    let account = |want: &ServiceAccountMatch| {
        identity.is_some_and(|identity| {
            identity.namespace() == want.namespace
                && identity.service_account() == want.service_account
        })
    };
    let from = |range: &Address| holds(range, caller.source);
    let to = |range: &Address| holds(range, caller.destination.ip());
    let port = |port: &u32| *port == u32::from(caller.destination.port());
    let mut said = Vec::new();
    say(
        &mut said,
        &kinds.namespaces,
        &kinds.not_namespaces,
        in_namespace,
    );
    say(&mut said, &kinds.principals, &kinds.not_principals, by_name);
    say(
        &mut said,
        &kinds.service_accounts,
        &kinds.not_service_accounts,
        account,
    );
    say(&mut said, &kinds.source_ips, &kinds.not_source_ips, from);
    say(
        &mut said,
        &kinds.destination_ips,
        &kinds.not_destination_ips,
        to,
    );
    say(
        &mut said,
        &kinds.destination_ports,
        &kinds.not_destination_ports,
        port,
    );
    !said.is_empty() && !said.contains(&false)
}

fn say<T>(said: &mut Vec<bool>, wanted: &[T], unwanted: &[T], agrees: impl Fn(&T) -> bool) {
    if !wanted.is_empty() {
        said.push(wanted.iter().any(&agrees));
    }
    if !unwanted.is_empty() {
        said.push(!unwanted.iter().any(&agrees));
    }
}

fn text(want: &StringMatch, found: Option<&str>, scheme: &str) -> bool {
    let Some(found) = found else { return false };
    let bare = |text: &'_ str| text.strip_prefix(scheme).unwrap_or(text).to_owned();
    match &want.match_type {
        Some(MatchType::Exact(exact)) => found == bare(exact),
        Some(MatchType::Prefix(prefix)) => found.starts_with(&bare(prefix)),
        Some(MatchType::Suffix(suffix)) => found.ends_with(suffix.as_str()),
        Some(MatchType::Presence(())) => !found.is_empty(),
        None => false,
    }
}

/// Bit by bit. An address of IPv4 counts as the IPv6 address it is mapped to.
fn holds(range: &Address, address: IpAddr) -> bool {
    let Some((net, shift)) = wide(&range.address) else {
        return false;
    };
    let address = match address {
        IpAddr::V4(four) => four.to_ipv6_mapped().octets(),
        IpAddr::V6(six) => six.octets(),
    };
    let length = range.length + shift;
    // A range of IPv6 that is wider than all of IPv4 holds no address of IPv4.
    let four = address.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    if four && length < 96 {
        return false;
    }
    (0..length).all(|bit| {
        let (byte, mask) = ((bit / 8) as usize, 0x80 >> (bit % 8));
        (net[byte] & mask) == (address[byte] & mask)
    })
}

fn wide(address: &[u8]) -> Option<([u8; 16], u32)> {
    if let Ok(four) = <[u8; 4]>::try_from(address) {
        return Some((std::net::Ipv4Addr::from(four).to_ipv6_mapped().octets(), 96));
    }
    Some((address.try_into().ok()?, 0))
}
