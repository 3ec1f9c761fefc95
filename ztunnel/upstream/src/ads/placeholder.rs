//! What stands in the mesh for a resource that was refused and never held: without it a workload
//! would look as if it were outside of the mesh, and be reached in the clear, and one that a policy
//! guards would be open to everybody.
//!
//! A workload or service is known by its addresses, as far as they can be read, and unreachable.
//! What of a policy can be read counts: whom it concerns, whether it is on trial, and whether it
//! allows. One that allows becomes one that allows nobody; of any other it is assumed that it denies
//! everybody. Where not even its scope can be read it concerns the workloads that list it. A workload
//! may also list policies that were never told, which Istio's node proxy leaves out, as this one does.

use std::net::IpAddr;
use std::sync::Arc;

use foldhash::HashSet;
use prost::Message as _;

use super::resource::{Type, content};
use api::envoy::service::discovery::v3::Resource;
use api::istio::security::{self as wire, Authorization};
use api::istio::workload::{Address, address};
use mesh::{Action, Change, NetworkAddress, Policy, PolicyScope};

/// What stands for a refused resource; none where not even its key can be read.
pub(super) fn of(kind: Type, resource: &Resource) -> Option<Change> {
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
    let (namespace, name) = parts(&resource.name)?;
    let content = content(Type::Authorization, resource).ok();
    let read = content.and_then(|content| Authorization::decode(content).ok());
    let allows = matches!(&read, Some(read) if read.action == i32::from(wire::Action::Allow));
    let scope = read.as_ref().map(|read| wire::Scope::try_from(read.scope));
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
        // Without a rule nothing matches; an empty clause matches everything.
        rules: if allows {
            Vec::new()
        } else {
            vec![vec![Vec::new()]]
        },
        dry_run: read.is_some_and(|read| read.dry_run),
        has_unknown_conditions: true,
    })
}

/// What takes it back.
pub(super) fn withdrawn(kind: Type, name: &str) -> Change {
    match (kind, parts(name)) {
        (Type::Authorization, Some((namespace, name))) => {
            Change::RemovePolicy(format!("{namespace}/{name}").into())
        }
        _ => Change::RemovePlaceholder(name.into()),
    }
}

/// The namespace and the name of a policy.
fn parts(name: &str) -> Option<(Arc<str>, Arc<str>)> {
    let (namespace, name) = name.split_once('/')?;
    let namespace = if namespace.is_empty() {
        "default"
    } else {
        namespace
    };
    (!name.is_empty() && !name.contains('/')).then(|| (namespace.into(), name.into()))
}

/// Where a workload or service is: what its aliases say, and what can be read of its content.
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
            // A range is left out: it may be the whole world.
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
