//! Placeholders of resources that could not be decoded and are not held. Without them a workload
//! would be treated as outside the mesh and be reached in plaintext, and a workload that a policy
//! protects would accept every connection.
//!
//! The placeholder of a workload or service has the addresses that can be decoded, and is
//! unreachable. The placeholder of a policy keeps the scope, the action and `dry_run`, if they can be
//! decoded: an ALLOW policy matches no connection, any other policy denies every connection. Without
//! a scope it applies to the workloads that list it. A workload may also list policies that do not
//! exist, which are ignored, as by Istio's node proxy.

use std::net::IpAddr;
use std::sync::Arc;

use foldhash::HashSet;
use prost::Message as _;

use super::resource::{Type, content};
use api::envoy::service::discovery::v3::Resource;
use api::istio::security::{self as wire, Authorization};
use api::istio::workload::{Address, address};
use mesh::{Action, Change, NetworkAddress, Policy, PolicyScope};

/// The placeholder of a refused resource; `None` if not even its key can be decoded.
pub(super) fn for_refused(kind: Type, resource: &Resource) -> Option<Change> {
    match kind {
        Type::Address => {
            let addresses = addresses(resource);
            (!addresses.is_empty()).then(|| Change::Placeholder {
                name: resource.name.as_str().into(),
                addresses,
            })
        }
        Type::Authorization => policy(resource).map(Box::new).map(Change::Policy),
    }
}

fn policy(resource: &Resource) -> Option<Policy> {
    let (namespace, name) = policy_key(&resource.name)?;
    let content = content(Type::Authorization, resource).ok();
    let decoded = content.and_then(|content| Authorization::decode(content).ok());
    let allow = i32::from(wire::Action::Allow);
    let allows = decoded.as_ref().is_some_and(|wire| wire.action == allow);
    let scope = decoded
        .as_ref()
        .map(|policy| wire::Scope::try_from(policy.scope));
    Some(Policy {
        name,
        namespace,
        scope: match scope {
            Some(Ok(wire::Scope::Global)) => PolicyScope::Global,
            Some(Ok(wire::Scope::Namespace)) => PolicyScope::Namespace,
            Some(Ok(wire::Scope::WorkloadSelector) | Err(_)) | None => {
                PolicyScope::WorkloadSelector
            }
        },
        action: if allows { Action::Allow } else { Action::Deny },
        // A policy without rules matches nothing; an empty clause matches everything.
        rules: if allows {
            Vec::new()
        } else {
            vec![vec![Vec::new()]]
        },
        dry_run: decoded.is_some_and(|policy| policy.dry_run),
        has_unknown_conditions: true,
    })
}

/// The change that removes a placeholder.
pub(super) fn removal(kind: Type, name: &str) -> Change {
    match (kind, policy_key(name)) {
        (Type::Authorization, Some((namespace, name))) => {
            Change::RemovePolicy(format!("{namespace}/{name}").into())
        }
        _ => Change::RemovePlaceholder(name.into()),
    }
}

/// The namespace and the name of a policy.
fn policy_key(name: &str) -> Option<(Arc<str>, Arc<str>)> {
    let (namespace, name) = name.split_once('/')?;
    let namespace = if namespace.is_empty() {
        "default"
    } else {
        namespace
    };
    (!name.is_empty() && !name.contains('/')).then(|| (namespace.into(), name.into()))
}

/// The addresses of a workload or service: its aliases, and the addresses that can be decoded.
fn addresses(resource: &Resource) -> Vec<NetworkAddress> {
    let mut seen = HashSet::default();
    let mut found = Vec::new();
    let mut add = |network: &str, address: Option<IpAddr>| {
        let Some(address) = address.map(|address| address.to_canonical()) else {
            return;
        };
        let network = network.into();
        let address = NetworkAddress { network, address };
        if seen.insert(address.clone()) {
            found.push(address);
        }
    };
    for alias in &resource.aliases {
        if let Some((network, address)) = alias.split_once('/') {
            add(network, address.parse().ok());
        }
    }
    let content = content(Type::Address, resource).ok();
    let address = content.and_then(|content| Address::decode(content).ok());
    match address.and_then(|address| address.r#type) {
        Some(address::Type::Workload(workload)) => {
            let addresses = workload.addresses.iter();
            addresses.for_each(|bytes| add(&workload.network, ip(bytes)));
        }
        Some(address::Type::Service(service)) => {
            // Ranges are omitted: a range may contain all addresses.
            let single = service.addresses.iter().filter(|at| at.length.is_none());
            single.for_each(|at| add(&at.network, ip(&at.address)));
        }
        None => {}
    }
    found
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
