//! What the indexes find.

use super::*;
use crate::{
    Action, Change, NetworkAddress, NetworkMode, NetworkRange, PolicyScope, Ports, Visibility,
};

fn workload(uid: &str, ips: &[&str]) -> Workload {
    let mut workload = Workload::new(uid, uid, "default", "default").unwrap();
    workload.workload_ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    workload
}

fn policy(name: &str, namespace: &str, scope: PolicyScope) -> Policy {
    let (name, namespace) = (name.into(), namespace.into());
    Policy {
        name,
        namespace,
        scope,
        action: Action::Deny,
        rules: Vec::new(),
        dry_run: false,
        has_unknown_conditions: false,
    }
}

fn service(hostname: &str, vip: &str) -> Service {
    Service {
        name: hostname.into(),
        namespace: "default".into(),
        hostname: hostname.into(),
        vips: vec![NetworkAddress {
            network: "".into(),
            address: vip.parse().unwrap(),
        }],
        ports: Ports::from([(80, 8080)]),
        subject_alt_names: vec!["spiffe://td/ns/n/sa/s".into(), "dns.example".into()],
        ..Service::default()
    }
}

#[test]
fn a_mapped_address_is_its_ipv4_address() {
    let snapshot = Snapshot::build(
        vec![workload("a", &["::ffff:10.0.0.1"])],
        vec![service("s", "::ffff:10.1.0.1")],
        Vec::new(),
    );
    for ip in ["10.0.0.1", "::ffff:10.0.0.1"] {
        assert!(
            snapshot
                .workload_by_address("", ip.parse().unwrap())
                .is_some(),
            "{ip}"
        );
    }
    assert!(
        snapshot
            .service_by_vip("", "10.1.0.1".parse().unwrap())
            .is_some()
    );
    assert!(
        snapshot
            .workload_by_address("elsewhere", "10.0.0.1".parse().unwrap())
            .is_none()
    );
}

#[test]
fn the_last_of_equal_keys_is_used() {
    let first = workload("a", &["10.0.0.1"]);
    let second = workload("a", &["10.0.0.2"]);
    let snapshot = Snapshot::build(vec![first, second], Vec::new(), Vec::new());
    assert_eq!(snapshot.workloads().len(), 1);
    assert!(
        snapshot
            .workload_by_address("", "10.0.0.1".parse().unwrap())
            .is_none()
    );
    assert!(
        snapshot
            .workload_by_address("", "10.0.0.2".parse().unwrap())
            .is_some()
    );
}

#[test]
fn an_own_network_takes_precedence_over_the_nodes() {
    let mut shared = workload("shared", &["10.0.0.1"]);
    shared.network_mode = NetworkMode::HostNetwork;
    let own = workload("own", &["10.0.0.1"]);
    for order in [vec![shared.clone(), own.clone()], vec![own, shared]] {
        let snapshot = Snapshot::build(order, Vec::new(), Vec::new());
        let found = snapshot
            .workload_by_address("", "10.0.0.1".parse().unwrap())
            .unwrap();
        assert_eq!(&*found.name, "own");
    }
}

#[test]
fn endpoints_are_the_workloads_that_list_the_service() {
    let mut one = workload("one", &["10.0.0.1"]);
    let key = service("s", "10.1.0.1").key();
    one.services = [(key.clone(), Ports::from([(80, 9090)]).into())].into();
    let two = workload("two", &["10.0.0.2"]);
    let snapshot = Snapshot::build(vec![one, two], vec![service("s", "10.1.0.1")], Vec::new());
    let [endpoint] = snapshot.endpoints(&key) else {
        panic!("one endpoint")
    };
    assert_eq!(
        (&*endpoint.workload.name, endpoint.ports.get(&80)),
        ("one", Some(&9090))
    );
    let entry = snapshot
        .entry_by_vip("", "10.1.0.1".parse().unwrap(), "default")
        .unwrap();
    assert_eq!(entry.identities.len(), 1, "only what is an identity");
    let unknown = NamespacedHostname {
        namespace: "x".into(),
        hostname: "y".into(),
    };
    assert!(snapshot.endpoints(&unknown).is_empty() && snapshot.service(&unknown).is_none());
}

/// With its two counters 320 bytes, a size that the allocator has; one more field makes it 384.
#[test]
fn a_workload_is_small() {
    assert!(size_of::<Workload>() <= 304, "{}", size_of::<Workload>());
}

#[test]
fn policies_apply_by_scope() {
    let mut target = workload("a", &[]);
    target.authorization_policies = [
        "other/selected".into(),
        "default/by-namespace".into(),
        "default/missing".into(),
    ]
    .into();
    let snapshot = Snapshot::build(
        vec![target.clone()],
        Vec::new(),
        vec![
            policy("global", "istio-system", PolicyScope::Global),
            policy("by-namespace", "default", PolicyScope::Namespace),
            policy("by-namespace", "other", PolicyScope::Namespace),
            policy("selected", "other", PolicyScope::WorkloadSelector),
            policy("unselected", "default", PolicyScope::WorkloadSelector),
        ],
    );
    let found: Vec<String> = snapshot
        .policies_for(&target)
        .map(|policy| policy.key())
        .collect();
    assert_eq!(
        found,
        [
            "istio-system/global",
            "default/by-namespace",
            "other/selected"
        ]
    );
    assert_eq!(snapshot.policies().len(), 5);
}

mod changes;
mod cost;
mod model;
