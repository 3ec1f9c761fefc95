//! What a change does to what was there.

use super::*;

fn at<'a>(snapshot: &'a Snapshot, ip: &str) -> Option<&'a str> {
    let workload = snapshot.workload_by_address("", ip.parse().unwrap());
    workload.map(|workload| &*workload.name)
}

fn vip<'a>(snapshot: &'a Snapshot, ip: &str) -> Option<&'a str> {
    let service = snapshot.service_by_vip("", ip.parse().unwrap());
    service.map(|service| &*service.hostname)
}

fn put(workload: &Workload) -> Change {
    Change::Workload(Box::new(workload.clone()))
}

fn put_service(service: &Service) -> Change {
    Change::Service(Box::new(service.clone()))
}

fn remove(uid: &str) -> Change {
    Change::RemoveWorkload(Uid(uid.into()))
}

/// A workload behind services of the namespace `default`.
fn behind(uid: &str, services: &[&str]) -> Workload {
    let mut workload = workload(uid, &[]);
    let entry = |name: &&str| (key("default", name), Arc::new(Ports::from([(80, 1)])));
    workload.services = services.iter().map(entry).collect();
    workload
}

fn key(namespace: &str, hostname: &str) -> NamespacedHostname {
    let (namespace, hostname) = (namespace.into(), hostname.into());
    NamespacedHostname {
        namespace,
        hostname,
    }
}

fn backends<'a>(snapshot: &'a Snapshot, service: &str) -> Vec<&'a str> {
    let endpoints = snapshot.endpoints(&key("default", service)).iter();
    endpoints.map(|endpoint| &*endpoint.workload.name).collect()
}

#[test]
fn a_clone_never_changes() {
    let mut now = Snapshot::default();
    now.apply(put(&workload("a", &["10.0.0.1"])));
    let before = now.clone();
    now.apply(put(&workload("a", &["10.0.0.2"])));
    now.apply(put(&workload("b", &["10.0.0.3"])));
    assert_eq!(
        (at(&before, "10.0.0.1"), at(&before, "10.0.0.2")),
        (Some("a"), None)
    );
    assert_eq!(
        (at(&now, "10.0.0.1"), at(&now, "10.0.0.2")),
        (None, Some("a"))
    );
    assert_eq!((before.workloads().len(), now.workloads().len()), (1, 2));
}

#[test]
fn an_equal_resource_changes_nothing() {
    let mut snapshot = Snapshot::default();
    let (workload, service) = (behind("a", &["s"]), service("s", "10.1.0.1"));
    let policy = policy("p", "default", PolicyScope::Global);
    let changes = [
        put(&workload),
        put_service(&service),
        Change::Policy(Box::new(policy)),
    ];
    assert!(snapshot.apply_all(changes.clone()));
    assert!(!snapshot.apply_all(changes));
    assert!(!snapshot.apply_all([
        remove("unknown"),
        Change::RemoveService(key("default", "unknown")),
        Change::RemovePolicy("default/unknown".into()),
    ]));
}

#[test]
fn a_claimant_that_lost_an_address_gets_it_back() {
    let mut snapshot = Snapshot::default();
    let mut shared = workload("shared", &["10.0.0.1"]);
    shared.network_mode = NetworkMode::HostNetwork;
    snapshot.apply_all([
        put(&workload("first", &["10.0.0.1"])),
        put(&workload("second", &["10.0.0.1"])),
        put(&shared),
    ]);
    assert_eq!(at(&snapshot, "10.0.0.1"), Some("second"));
    snapshot.apply(remove("second"));
    assert_eq!(at(&snapshot, "10.0.0.1"), Some("first"));
    snapshot.apply(put(&workload("first", &["10.0.0.2"])));
    assert_eq!(at(&snapshot, "10.0.0.1"), Some("shared"));
    snapshot.apply(remove("shared"));
    assert_eq!(at(&snapshot, "10.0.0.1"), None);
}

#[test]
fn an_update_of_a_former_owner_does_not_take_the_address_back() {
    let mut snapshot = Snapshot::default();
    let mut old = workload("old", &["10.0.0.1"]);
    snapshot.apply_all([put(&old), put(&workload("new", &["10.0.0.1"]))]);
    old.capacity = 0;
    assert!(snapshot.apply(put(&old)));
    assert_eq!(at(&snapshot, "10.0.0.1"), Some("new"));
    snapshot.apply(remove("new"));
    let found = snapshot.workload_by_address("", "10.0.0.1".parse().unwrap());
    assert_eq!(found.unwrap().capacity, 0, "as it was told last");
}

#[test]
fn backends_may_come_before_their_service_and_outlive_it() {
    let mut snapshot = Snapshot::default();
    snapshot.apply_all([put(&behind("b", &["s"])), put(&behind("a", &["s", "t"]))]);
    assert!(backends(&snapshot, "s").is_empty());
    let mut service = service("s", "10.1.0.1");
    snapshot.apply(put_service(&service));
    assert_eq!(
        backends(&snapshot, "s"),
        ["a", "b"],
        "in the order of their uids"
    );
    service.canonical = true;
    snapshot.apply(put_service(&service));
    assert_eq!(backends(&snapshot, "s"), ["a", "b"]);
    snapshot.apply(Change::RemoveService(service.key()));
    snapshot.apply_all([put(&behind("a", &["t"])), put(&behind("c", &["s"]))]);
    assert!(backends(&snapshot, "s").is_empty());
    snapshot.apply(put_service(&service));
    assert_eq!(backends(&snapshot, "s"), ["b", "c"]);
}

#[test]
fn one_batch_may_change_one_workload_several_times() {
    let mut snapshot = Snapshot::default();
    snapshot.apply_all([
        put(&behind("a", &["s"])),
        put_service(&service("s", "10.1.0.1")),
        remove("a"),
        put(&behind("b", &["s"])),
        put(&behind("b", &[])),
        put(&behind("c", &[])),
        put(&behind("c", &["s"])),
    ]);
    assert_eq!(backends(&snapshot, "s"), ["c"]);
}

#[test]
fn exact_addresses_and_longer_prefixes_take_precedence_over_a_range() {
    let range = |hostname: &str, range: &str| Service {
        hostname: hostname.into(),
        namespace: "default".into(),
        ranges: vec![NetworkRange {
            network: "".into(),
            range: range.parse().unwrap(),
        }],
        ..Service::default()
    };
    let mut snapshot = Snapshot::default();
    snapshot.apply_all([
        put_service(&range("wide", "10.1.7.7/16")),
        put_service(&range("narrow", "::ffff:10.1.2.0/120")),
        put_service(&service("exact", "10.1.2.3")),
        put_service(&range("six", "fd00::/8")),
    ]);
    let found = |ip| vip(&snapshot, ip);
    assert_eq!(found("10.1.2.3"), Some("exact"));
    assert_eq!(found("::ffff:10.1.2.4"), Some("narrow"));
    assert_eq!(found("10.1.3.1"), Some("wide"));
    assert_eq!(found("10.2.0.1"), None);
    assert_eq!(found("fd12::1"), Some("six"));
    assert!(
        snapshot
            .service_by_vip("elsewhere", "10.1.3.1".parse().unwrap())
            .is_none()
    );
    snapshot.apply(Change::RemoveService(key("default", "narrow")));
    snapshot.apply(put_service(&range("exact", "10.1.0.0/16")));
    assert_eq!(
        vip(&snapshot, "10.1.2.3"),
        Some("exact"),
        "the later of two equal ranges"
    );
    snapshot.apply(Change::RemoveService(key("default", "exact")));
    assert_eq!(vip(&snapshot, "10.1.2.3"), Some("wide"));
}

#[test]
fn a_host_name_belongs_to_the_service_of_the_clients_namespace_first() {
    let of = |namespace: &str, canonical, visibility| Service {
        hostname: "h".into(),
        namespace: namespace.into(),
        canonical,
        visibility,
        ..Service::default()
    };
    let mut snapshot = Snapshot::default();
    let meant = |snapshot: &Snapshot, client| {
        let entry = snapshot.resolve_hostname("h", client)?;
        Some(entry.service.namespace.to_string())
    };
    snapshot.apply(put_service(&of("a", false, Visibility::Namespace)));
    assert_eq!(meant(&snapshot, "a").as_deref(), Some("a"));
    assert_eq!(meant(&snapshot, "x"), None, "it is hidden");
    snapshot.apply_all([
        put_service(&of("c", false, Visibility::Public)),
        put_service(&of("b", false, Visibility::Public)),
    ]);
    assert_eq!(meant(&snapshot, "x").as_deref(), Some("b"), "the first one");
    snapshot.apply(put_service(&of("c", true, Visibility::Public)));
    assert_eq!(
        meant(&snapshot, "x").as_deref(),
        Some("c"),
        "the canonical one"
    );
    assert_eq!(meant(&snapshot, "b").as_deref(), Some("b"));
    let all = snapshot.services_by_hostname("h");
    assert_eq!(
        all.map(|entry| &*entry.service.namespace)
            .collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
    assert_eq!(snapshot.services().len(), 3);
    assert_eq!(snapshot.services_by_hostname("unknown").count(), 0);
}

#[test]
fn a_policy_that_changes_its_scope_is_removed_from_the_old_one() {
    let target = workload("a", &[]);
    let mut snapshot = Snapshot::default();
    let count = |snapshot: &Snapshot| snapshot.policies_for(&target).count();
    for (scope, applying) in [
        (PolicyScope::Global, 1),
        (PolicyScope::WorkloadSelector, 0),
        (PolicyScope::Namespace, 1),
    ] {
        snapshot.apply(Change::Policy(Box::new(policy("p", "default", scope))));
        assert_eq!(count(&snapshot), applying, "{scope:?}");
    }
    snapshot.apply(Change::RemovePolicy("default/p".into()));
    assert_eq!((count(&snapshot), snapshot.policies().len()), (0, 0));
}
