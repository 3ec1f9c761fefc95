//! A snapshot that changes, against lists that are searched from one end to the other.

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::*;

const NETWORKS: [&str; 2] = ["", "n"];
const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const HOSTS: [&str; 2] = ["h", "i"];
const WORKLOAD_IPS: [&str; 5] = [
    "10.0.0.1",
    "10.0.0.2",
    "::ffff:10.0.0.1",
    "fd00::1",
    "10.1.0.1",
];
const VIPS: [&str; 5] = [
    "10.1.0.1",
    "10.1.0.2",
    "10.1.0.5",
    "::ffff:10.1.0.1",
    "fd00::1",
];
const RANGES: [&str; 6] = [
    "10.1.0.0/30",
    "10.1.0.3/30",
    "10.1.0.0/24",
    "::ffff:10.1.0.0/120",
    "fd00::/64",
    "::/0",
];

/// Who claims what: network, address or range, claimant, and whether it is its own.
type Claims = Vec<(Arc<str>, IpNet, String, bool)>;

#[derive(Debug, Clone, Default)]
struct Model {
    workloads: Vec<Workload>,
    services: Vec<Service>,
    policies: Vec<Policy>,
    addresses: Claims,
    vips: Claims,
    ranges: Claims,
}

fn host(ip: IpAddr) -> IpNet {
    ip.to_canonical().into()
}

/// A range of IPv4-mapped addresses holds IPv4 addresses.
fn canonical(range: IpNet) -> IpNet {
    let range = range.trunc();
    match range.addr().to_canonical() {
        IpAddr::V4(v4) if range.addr().is_ipv6() && range.prefix_len() >= 96 => {
            IpNet::new(v4.into(), range.prefix_len() - 96).unwrap()
        }
        _ => range,
    }
}

fn reclaim(claims: &mut Claims, who: &str, own: bool, wanted: &[(Arc<str>, IpNet)]) {
    claims.retain(|(network, at, by, mode)| {
        by != who || *mode == own && wanted.contains(&(network.clone(), *at))
    });
    for (network, at) in wanted {
        let claim = (network.clone(), *at, who.to_owned(), own);
        if !claims.contains(&claim) {
            claims.push(claim);
        }
    }
}

fn holder<'a>(claims: &'a Claims, network: &str, at: IpNet) -> Option<&'a str> {
    let here = claims
        .iter()
        .filter(|(net, place, ..)| **net == *network && *place == at);
    let (_, _, who, _) = here.max_by_key(|(.., own)| *own)?;
    Some(who)
}

fn replace<T: PartialEq>(all: &mut Vec<T>, new: Option<T>, same: impl Fn(&T) -> bool) -> bool {
    let old = all.iter().position(same).map(|at| all.remove(at));
    let changed = old != new;
    all.extend(new);
    changed
}

impl Model {
    fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Workload(workload) => self.workload(&workload.uid.clone(), Some(*workload)),
            Change::Placeholder { .. } | Change::RemovePlaceholder(_) => false,
            Change::RemoveWorkload(uid) => self.workload(&uid, None),
            Change::Service(service) => self.service(&service.key(), Some(*service)),
            Change::RemoveService(key) => self.service(&key, None),
            Change::Policy(policy) => self.policy(&policy.key(), Some(*policy)),
            Change::RemovePolicy(key) => self.policy(&key, None),
        }
    }

    fn workload(&mut self, uid: &Uid, new: Option<Workload>) -> bool {
        let (own, wanted) = new.as_ref().map_or((true, Vec::new()), |workload| {
            let own = workload.network_mode == NetworkMode::Standard;
            let ips = workload.workload_ips.iter();
            (
                own,
                ips.map(|ip| (workload.network.clone(), host(*ip)))
                    .collect(),
            )
        });
        reclaim(&mut self.addresses, &uid.0, own, &wanted);
        replace(&mut self.workloads, new, |old| old.uid == *uid)
    }

    fn service(&mut self, key: &NamespacedHostname, new: Option<Service>) -> bool {
        let vips = new.iter().flat_map(|service| &service.vips);
        let vips: Vec<_> = vips
            .map(|vip| (vip.network.clone(), host(vip.address)))
            .collect();
        let ranges = new.iter().flat_map(|service| &service.ranges);
        let ranges: Vec<_> = ranges
            .map(|range| (range.network.clone(), canonical(range.range)))
            .collect();
        reclaim(&mut self.vips, &key.to_string(), true, &vips);
        reclaim(&mut self.ranges, &key.to_string(), true, &ranges);
        replace(&mut self.services, new, |old| old.key() == *key)
    }

    fn policy(&mut self, key: &str, new: Option<Policy>) -> bool {
        replace(&mut self.policies, new, |old| old.key() == key)
    }

    /// Ranges that are longer go before, addresses before all of them, and under one of them whoever
    /// is meant in the client's namespace, the last one to claim it among equals.
    fn by_vip(&self, network: &str, address: IpAddr, client: &str) -> Option<String> {
        let address = address.to_canonical();
        let vips = self.vips.iter().map(|claim| (claim, true));
        let ranges = self.ranges.iter().map(|claim| (claim, false));
        let holding = vips
            .chain(ranges)
            .filter(|((net, range, ..), _)| **net == *network && range.contains(&address));
        let ranked = holding
            .enumerate()
            .filter_map(|(at, ((_, range, who, _), exact))| {
                let mut services = self.services.iter();
                let service = services.find(|service| service.key().to_string() == *who)?;
                let own = *service.namespace == *client;
                let canonical = !own && service.canonical;
                let rank = (exact, range.prefix_len(), own, canonical, at);
                (own || service.visibility == Visibility::Public).then_some((rank, who))
            });
        let (_, who) = ranked.max()?;
        Some(who.clone())
    }

    fn resolve(&self, hostname: &str, client: &str) -> Option<String> {
        let mut named: Vec<&Service> = self
            .services
            .iter()
            .filter(|service| *service.hostname == *hostname)
            .filter(|service| {
                service.visibility == Visibility::Public || *service.namespace == *client
            })
            .collect();
        named.sort_by_key(|service| {
            (
                *service.namespace != *client,
                !service.canonical,
                service.namespace.clone(),
            )
        });
        named.first().map(|service| service.key().to_string())
    }

    fn policies_for(&self, workload: &Workload) -> Vec<String> {
        let mut policies: Vec<&Policy> = self.policies.iter().collect();
        policies.sort_by_key(|policy| policy.key());
        let of = |scope| policies.iter().filter(move |policy| policy.scope == scope);
        let mut keys: Vec<String> = of(PolicyScope::Global).map(|policy| policy.key()).collect();
        let near =
            of(PolicyScope::Namespace).filter(|policy| policy.namespace == workload.namespace);
        keys.extend(near.map(|policy| policy.key()));
        for listed in workload.authorization_policies.iter() {
            let found = of(PolicyScope::WorkloadSelector).map(|policy| policy.key());
            keys.extend(found.filter(|key| **key == **listed));
        }
        keys
    }
}

fn assert_same(snapshot: &Snapshot, model: &Model) {
    assert_workloads(snapshot, model);
    assert_services(snapshot, model);
    assert_names(snapshot, model);
    let mut policies: Vec<String> = snapshot.policies().map(|policy| policy.key()).collect();
    let mut expected: Vec<String> = model.policies.iter().map(Policy::key).collect();
    policies.sort();
    expected.sort();
    assert_eq!(policies, expected);
    for workload in &model.workloads {
        let found = snapshot.policies_for(workload).map(|policy| policy.key());
        assert_eq!(found.collect::<Vec<_>>(), model.policies_for(workload));
    }
}

fn assert_workloads(snapshot: &Snapshot, model: &Model) {
    assert_eq!(snapshot.workloads().len(), model.workloads.len());
    assert_eq!(snapshot.workloads().count(), model.workloads.len());
    for workload in &model.workloads {
        assert_eq!(
            &**snapshot.workload_by_uid(&workload.uid).unwrap(),
            workload
        );
    }
    for network in NETWORKS {
        for ip in WORKLOAD_IPS.map(|ip| ip.parse().unwrap()) {
            let found = snapshot.workload_by_address(network, ip);
            let uid = found.map(|workload| &*workload.uid.0);
            assert_eq!(
                uid,
                holder(&model.addresses, network, host(ip)),
                "{network}/{ip}"
            );
            let known = found.is_none_or(|workload| model.workloads.contains(workload));
            assert!(known, "an address leads to the workload as it is now");
        }
    }
}

fn assert_services(snapshot: &Snapshot, model: &Model) {
    assert_eq!(snapshot.services().len(), model.services.len());
    assert_eq!(snapshot.services().count(), model.services.len());
    for (namespace, hostname) in NAMESPACES.iter().flat_map(|a| HOSTS.map(|b| (*a, b))) {
        let (namespace, hostname) = (namespace.into(), hostname.into());
        let key = NamespacedHostname {
            namespace,
            hostname,
        };
        let service = model.services.iter().find(|service| service.key() == key);
        assert_eq!(snapshot.service(&key).map(|service| &**service), service);
        let mut behind: Vec<(Uid, Ports)> = Vec::new();
        for workload in model.workloads.iter().filter(|_| service.is_some()) {
            let named = workload
                .services
                .iter()
                .rev()
                .find(|(named, _)| *named == key);
            behind.extend(named.map(|(_, ports)| (workload.uid.clone(), (**ports).clone())));
        }
        behind.sort();
        let found = snapshot.endpoints(&key).iter();
        let found = found.map(|end| (end.workload.uid.clone(), (*end.ports).clone()));
        assert_eq!(found.collect::<Vec<_>>(), behind, "{key}");
        let current = snapshot.endpoints(&key).iter();
        for endpoint in current {
            assert!(model.workloads.contains(&endpoint.workload));
        }
    }
}

fn assert_names(snapshot: &Snapshot, model: &Model) {
    for network in NETWORKS {
        for ip in VIPS
            .iter()
            .chain(&["10.1.0.3", "10.1.0.200", "10.9.0.1", "fd00::2", "fd01::1"])
        {
            let address = ip.parse().unwrap();
            for client in NAMESPACES {
                let found = snapshot.entry_by_vip(network, address, client);
                let found = found.map(|entry| entry.service.key().to_string());
                let expected = model.by_vip(network, address, client);
                assert_eq!(found, expected, "{network}/{ip} in {client}");
            }
        }
    }
    for hostname in HOSTS {
        let found = snapshot.services_by_hostname(hostname);
        let found: Vec<String> = found.map(|entry| entry.service.key().to_string()).collect();
        let named = model
            .services
            .iter()
            .filter(|service| *service.hostname == *hostname);
        let mut named: Vec<String> = named.map(|service| service.key().to_string()).collect();
        named.sort();
        assert_eq!(found, named);
        for client in NAMESPACES {
            let found = snapshot.resolve_hostname(hostname, client);
            let found = found.map(|entry| entry.service.key().to_string());
            assert_eq!(
                found,
                model.resolve(hostname, client),
                "{hostname} in {client}"
            );
        }
    }
}

fn any_key() -> impl Strategy<Value = NamespacedHostname> {
    (select(&NAMESPACES[..]), select(&HOSTS[..])).prop_map(|(namespace, hostname)| {
        let (namespace, hostname) = (namespace.into(), hostname.into());
        NamespacedHostname {
            namespace,
            hostname,
        }
    })
}

fn any_uid() -> impl Strategy<Value = Uid> {
    (0..12_u8).prop_map(|number| Uid(format!("uid {number}").into()))
}

fn any_policy_key() -> impl Strategy<Value = (&'static str, &'static str)> {
    (select(&NAMESPACES[..]), select(&["p", "q"][..]))
}

fn any_workload() -> impl Strategy<Value = Workload> {
    let ips = prop::collection::vec(select(&WORKLOAD_IPS[..]), 0..3);
    let services = prop::collection::vec((any_key(), 80..83_u16), 0..3);
    let policies = prop::collection::vec(any_policy_key(), 0..3);
    let modes = vec![NetworkMode::Standard, NetworkMode::HostNetwork];
    (
        (any_uid(), select(&NAMESPACES[..]), select(&NETWORKS[..])),
        (ips, select(modes), 0..3_u32),
        (services, policies),
    )
        .prop_map(
            |((uid, namespace, network), (ips, mode, capacity), (services, policies))| {
                let mut workload = Workload::new(&uid.0, "w", namespace, "sa").unwrap();
                workload.network = network.into();
                workload.workload_ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
                workload.network_mode = mode;
                workload.capacity = capacity;
                let ports = |port| Arc::new(Ports::from([(80, port)]));
                let services = services.into_iter();
                workload.services = services.map(|(key, port)| (key, ports(port))).collect();
                let policies = policies.iter().map(|(a, b)| format!("{a}/{b}").into());
                workload.authorization_policies = policies.collect();
                workload
            },
        )
}

fn any_service() -> impl Strategy<Value = Service> {
    let vips = prop::collection::vec((select(&NETWORKS[..]), select(&VIPS[..])), 0..3);
    let ranges = prop::collection::vec((select(&NETWORKS[..]), select(&RANGES[..])), 0..3);
    let visibilities = vec![Visibility::Public, Visibility::Namespace];
    (any_key(), vips, ranges, any::<bool>(), select(visibilities)).prop_map(
        |(key, vips, ranges, canonical, visibility)| {
            let vips = vips.into_iter().map(|(network, ip)| NetworkAddress {
                network: network.into(),
                address: ip.parse().unwrap(),
            });
            let ranges = ranges.into_iter().map(|(network, range)| NetworkRange {
                network: network.into(),
                range: range.parse().unwrap(),
            });
            Service {
                namespace: key.namespace,
                hostname: key.hostname,
                vips: vips.collect(),
                ranges: ranges.collect(),
                canonical,
                visibility,
                ..Service::default()
            }
        },
    )
}

fn any_policy() -> impl Strategy<Value = Policy> {
    use PolicyScope::{Global, Namespace, WorkloadSelector};
    let scopes = select(&[Global, Namespace, WorkloadSelector][..]);
    (any_policy_key(), scopes, any::<bool>()).prop_map(|((namespace, name), scope, dry_run)| {
        let policy = policy(name, namespace, scope);
        Policy { dry_run, ..policy }
    })
}

fn any_change() -> impl Strategy<Value = Change> {
    let policy_key = any_policy_key().prop_map(|(a, b)| format!("{a}/{b}").into());
    prop_oneof![
        6 => any_workload().prop_map(|workload| Change::Workload(Box::new(workload))),
        2 => any_uid().prop_map(Change::RemoveWorkload),
        4 => any_service().prop_map(|service| Change::Service(Box::new(service))),
        2 => any_key().prop_map(Change::RemoveService),
        3 => any_policy().prop_map(|policy| Change::Policy(Box::new(policy))),
        1 => policy_key.prop_map(Change::RemovePolicy),
    ]
}

/// Takes everything away again.
fn removals(model: &Model) -> Vec<Change> {
    let workloads = model.workloads.iter();
    let services = model.services.iter();
    let policies = model.policies.iter();
    workloads
        .map(|workload| Change::RemoveWorkload(workload.uid.clone()))
        .chain(services.map(|service| Change::RemoveService(service.key())))
        .chain(policies.map(|policy| Change::RemovePolicy(policy.key().into())))
        .collect()
}

proptest! {
    #[test]
    fn every_lookup_agrees_with_the_model(
        batches in prop::collection::vec(prop::collection::vec(any_change(), 0..20), 1..8)
    ) {
        let (mut snapshot, mut model) = (Snapshot::default(), Model::default());
        let mut published = Vec::new();
        for batch in batches {
            let changes = batch.iter().cloned().map(|change| model.apply(change));
            let changed = changes.fold(false, |any, changed| any | changed);
            prop_assert_eq!(snapshot.apply_all(batch), changed);
            assert_same(&snapshot, &model);
            published.push((snapshot.clone(), model.clone()));
        }
        snapshot.apply_all(removals(&model));
        assert_same(&snapshot, &Model::default());
        let rest = format!("{snapshot:?}");
        prop_assert!(!rest.contains("Leaf") && rest.contains("v4: {}, v6: {}"), "{rest}");
        for (snapshot, model) in published {
            assert_same(&snapshot, &model);
        }
    }
}

#[test]
fn lookups_agree_with_the_model_after_ten_thousand_changes() {
    let (mut snapshot, mut model) = (Snapshot::default(), Model::default());
    let mut runner = TestRunner::deterministic();
    let changes = any_change();
    for number in 0..10_000 {
        let change = changes.new_tree(&mut runner).unwrap().current();
        let changed = model.apply(change.clone());
        // Somebody always looks on, so that nothing is changed in place.
        let seen = snapshot.clone();
        assert_eq!(snapshot.apply(change), changed);
        drop(seen);
        if number % 50 == 0 {
            assert_same(&snapshot, &model);
        }
    }
    assert_same(&snapshot, &model);
}
