//! A simple policy evaluator that implements Istio's API documentation directly on the messages:
//! the rules of a policy are combined with OR, the clauses of a rule with AND, the matches of a
//! clause with OR, the fields of a match with AND, and the values of a field with OR; a `not_`
//! field negates. A policy without rules matches nothing, an empty clause matches everything, a
//! match without fields matches nothing.

use std::net::{IpAddr, SocketAddr};

use api::istio::security::string_match::MatchType;
use api::istio::security::{
    Action, Address, Authorization, Match, ServiceAccountMatch, StringMatch,
};
use mesh::Identity;

/// A connection to authorize.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The authenticated identity of the client.
    pub identity: Option<Identity>,
    /// The client's address.
    pub source: IpAddr,
    /// The destination.
    pub destination: SocketAddr,
}

/// Whether the policies allow a connection. All of them must apply to the destination.
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
            clause.matches.is_empty()
                || clause
                    .matches
                    .iter()
                    .any(|match_fields| match_matches(match_fields, caller))
        })
    })
}

fn match_matches(match_fields: &Match, caller: &Caller) -> bool {
    let identity = caller.identity.as_ref();
    let namespace = identity.map(Identity::namespace);
    let principal = identity.map(|identity| identity.as_str().trim_start_matches("spiffe://"));
    let in_namespace = |want: &StringMatch| text_matches(want, namespace, "");
    let by_name = |want: &StringMatch| text_matches(want, principal, "spiffe://");
    let account = |want: &ServiceAccountMatch| {
        identity.is_some_and(|identity| {
            identity.namespace() == want.namespace
                && identity.service_account() == want.service_account
        })
    };
    let from = |range: &Address| contains(range, caller.source);
    let to = |range: &Address| contains(range, caller.destination.ip());
    let port = |port: &u32| *port == u32::from(caller.destination.port());
    let results = [
        field_matches(
            &match_fields.namespaces,
            &match_fields.not_namespaces,
            in_namespace,
        ),
        field_matches(
            &match_fields.principals,
            &match_fields.not_principals,
            by_name,
        ),
        field_matches(
            &match_fields.service_accounts,
            &match_fields.not_service_accounts,
            account,
        ),
        field_matches(&match_fields.source_ips, &match_fields.not_source_ips, from),
        field_matches(
            &match_fields.destination_ips,
            &match_fields.not_destination_ips,
            to,
        ),
        field_matches(
            &match_fields.destination_ports,
            &match_fields.not_destination_ports,
            port,
        ),
    ];
    let mut present = results.into_iter().flatten().peekable();
    present.peek().is_some() && present.all(|matched| matched)
}

/// Whether a field and its negation match; `None` if the match has neither.
fn field_matches<T>(
    values: &[T],
    negated_values: &[T],
    matches_value: impl Fn(&T) -> bool,
) -> Option<bool> {
    if values.is_empty() && negated_values.is_empty() {
        return None;
    }
    let positive = values.is_empty() || values.iter().any(&matches_value);
    Some(positive && !negated_values.iter().any(&matches_value))
}

fn text_matches(want: &StringMatch, found: Option<&str>, scheme: &str) -> bool {
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

/// Compares bit by bit. An IPv4 address is compared as the IPv6 address to which it is mapped.
fn contains(range: &Address, address: IpAddr) -> bool {
    let Some((net, shift)) = as_v6(&range.address) else {
        return false;
    };
    let address = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let length = range.length + shift;
    // An IPv6 range that is wider than all of IPv4 contains no IPv4 address.
    let is_v4 = address.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    if is_v4 && length < 96 {
        return false;
    }
    (0..length).all(|bit| {
        let (byte, mask) = ((bit / 8) as usize, 0x80 >> (bit % 8));
        (net[byte] & mask) == (address[byte] & mask)
    })
}

/// An address as IPv6, and the difference of its prefix length.
fn as_v6(address: &[u8]) -> Option<([u8; 16], u32)> {
    if let Ok(v4) = <[u8; 4]>::try_from(address) {
        return Some((std::net::Ipv4Addr::from(v4).to_ipv6_mapped().octets(), 96));
    }
    Some((address.try_into().ok()?, 0))
}
