//! Fast-path decisions by example.

use std::sync::Arc;

use super::*;
use crate::{AllowedPaths, Identity, NetnsCookie, PathSettings, SameNode, Uid, local};

const MESH: &str = r#"
workloads:
- { uid: a, name: a, serviceAccount: a, workloadIps: ["10.0.0.1", "fd00::1"], protocol: HBONE, node: n }
- { uid: b, name: b, serviceAccount: b, workloadIps: ["10.0.0.2", "fd00::2"], protocol: HBONE, node: n,
    services: { default/s: { 80: 8080 }, default/four: { 80: 8080 } }, authorizationPolicies: [default/only-a] }
- { uid: c, name: c, serviceAccount: c, workloadIps: ["10.0.0.3"], protocol: HBONE, node: n, capacity: 3,
    services: { default/s: { 80: 8080 } } }
- { uid: far, name: far, workloadIps: ["10.0.1.1"], protocol: HBONE, node: m, services: { default/s: { 80: 8080 } } }
- { uid: plain, name: plain, workloadIps: ["10.0.2.1"], services: { default/s: { 80: 8080 } } }
- { uid: told, name: told, workloadIps: ["10.0.0.4"], protocol: HBONE, node: n, applicationTunnel: { protocol: PROXY } }
- { uid: shut, name: shut, workloadIps: ["10.0.0.5"], protocol: HBONE, node: n, authorizationPolicies: [default/no-a],
    services: { default/s: { 80: 8080 } } }
- { uid: behind, name: behind, workloadIps: ["10.0.0.6"], protocol: HBONE, node: n, waypoint: { destination: default/s } }
- { uid: wp, name: wp, serviceAccount: wp, workloadIps: ["10.0.0.7"], protocol: HBONE, node: n, nativeTunnel: true, services: { default/wp: {} } }
- { uid: in, name: in, serviceAccount: in, workloadIps: ["10.0.0.8"], protocol: HBONE, node: n, nativeTunnel: true }
- { uid: called, name: called, hostname: called.example, services: { default/named: {}, default/half: {} } }
- { uid: abroad, name: abroad, network: other, protocol: HBONE, networkGateway: { destination: other/10.9.9.9 }, services: { default/half: {} } }
- { uid: c2, name: c2, workloadIps: ["10.0.2.2"], services: { default/half: {} } }
services:
- { name: guarded, hostname: guarded, vips: ["/10.1.0.3"], ports: { 80: 80 }, waypoint: { destination: default/wp } }
- { name: shared, hostname: shared, vips: ["/10.1.0.4"], ports: { 80: 80 }, loadBalancer: { mode: Passthrough },
    weightedWaypoints: [{ destination: { destination: default/wp }, weight: 0 }] }
- { name: lost, hostname: lost, vips: ["/10.1.0.5"], ports: { 80: 80 }, loadBalancer: { mode: Passthrough }, waypoint: { destination: default/nobody } }
- { name: asked, hostname: asked, vips: ["/10.1.0.6"], ports: { 80: 80 }, loadBalancer: { mode: Passthrough }, waypoint: { destination: default/wp }, ingressUseWaypoint: true }
- { name: wp, hostname: wp, ports: { 15008: 15008 } }
- { name: named, hostname: named, vips: ["/10.1.0.7"], ports: { 80: 80 } }
- { name: half, hostname: half, vips: ["/10.1.0.8"], ports: { 80: 80 } }
- { name: private, namespace: elsewhere, hostname: private, vips: ["/10.1.0.9"], ports: { 80: 80 }, visibility: Namespace, waypoint: { destination: default/wp } }
- { name: s, hostname: s, vips: ["/10.1.0.1"], ports: { 80: 80 } }
- { name: four, hostname: four, vips: ["/10.1.0.2", "/fd01::2"], ports: { 80: 80 } }
policies:
- { name: only-a, namespace: default, scope: WorkloadSelector, action: Allow, rules: [[[{ principals: [{ exact: cluster.local/ns/default/sa/a }] }]]] }
- { name: no-a, namespace: default, scope: WorkloadSelector, action: Deny, rules: [[[{ principals: [{ exact: cluster.local/ns/default/sa/a }] }]]] }
"#;

/// The pods of this node and their namespaces.
const LOCAL_PODS: [(&str, u64, &[&str]); 8] = [
    ("a", 1, &["10.0.0.1", "fd00::1"]),
    ("b", 2, &["10.0.0.2", "fd00::2"]),
    ("c", 3, &["10.0.0.3"]),
    ("told", 4, &["10.0.0.4"]),
    ("shut", 5, &["10.0.0.5"]),
    ("behind", 6, &["10.0.0.6"]),
    ("wp", 7, &["10.0.0.7"]),
    ("in", 8, &["10.0.0.8"]),
];

fn view(paths: &PathSettings) -> View {
    let pods = LOCAL_PODS.map(|(uid, cookie, addresses)| LocalPod {
        uid: Uid(uid.into()),
        account: None,
        announced: None,
        cookie: NetnsCookie(cookie),
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        redirected: false,
        leaving: false,
    });
    let mesh = Arc::new(local::parse(MESH).unwrap().into_snapshot());
    View::new(mesh, pods, paths)
}

fn joined() -> AllowedPaths {
    AllowedPaths {
        join_mode: JoinMode::Joined,
        ..AllowedPaths::default()
    }
}

/// The entry of a pod and a destination: `address>pod weight` for each backend, and the total weight.
fn shown_entry(pod: u64, to: &str, paths: &PathSettings) -> String {
    let key = FastPathKey {
        pod: NetnsCookie(pod),
        destination: to.parse().unwrap(),
    };
    let Some(found) = entry_after_change(&key, &[], &view(paths)) else {
        return "proxy".to_owned();
    };
    let shown = found.backends.iter().map(|backend| {
        let server = backend.server.map_or(0, |cookie| cookie.0);
        let join_mode = match backend.join_mode {
            JoinMode::Apart => "",
            JoinMode::Joined => " joined",
        };
        format!("{}>{server} {}{join_mode}", backend.to, backend.weight)
    });
    let listed: Vec<String> = shown.collect();
    format!("{} of {}", listed.join(", "), found.total)
}

#[test]
fn entries_name_the_backends_that_need_no_proxy() {
    for (pod, to, expected) in [
        (1, "192.0.2.1:443", "192.0.2.1:443>0 1 of 1"),
        (1, "10.0.0.2:80", "10.0.0.2:80>2 1 of 1"),
        (1, "[fd00::2]:80", "[fd00::2]:80>2 1 of 1"),
        (1, "10.0.2.1:80", "10.0.2.1:80>0 1 of 1"),
        // On another node; expects a PROXY header; denied by policy; behind a waypoint.
        (1, "10.0.1.1:80", "proxy"),
        (1, "10.0.0.4:80", "proxy"),
        (1, "10.0.0.5:80", "proxy"),
        (1, "10.0.0.6:80", "proxy"),
        // The policy of b allows a only.
        (3, "10.0.0.2:80", "proxy"),
        // An unknown namespace.
        (9, "192.0.2.1:443", "proxy"),
        // The proxy carries the shares of the remote backend and of the one whose policy denies.
        (
            1,
            "10.1.0.1:80",
            "10.0.0.2:8080>2 1, 10.0.0.3:8080>3 3, 10.0.2.1:8080>0 1 of 7",
        ),
        (
            3,
            "10.1.0.1:80",
            "10.0.0.3:8080>3 3, 10.0.2.1:8080>0 1, 10.0.0.5:8080>5 1 of 7",
        ),
        (1, "10.1.0.1:81", "proxy"),
        (1, "[fd01::2]:80", "[fd00::2]:8080>2 1 of 1"),
    ] {
        assert_eq!(
            shown_entry(pod, to, &PathSettings::default()),
            expected,
            "{pod} {to}"
        );
    }
}

#[test]
fn connections_that_need_a_waypoint_tunnel_or_name_have_no_entry() {
    for (pod, to, expected) in [
        // A waypoint applies: with an instance, with weight 0, without an instance.
        (1, "10.1.0.3:80", "proxy"),
        (1, "10.1.0.4:80", "proxy"),
        (1, "10.1.0.5:80", "proxy"),
        (1, "10.1.0.6:80", "proxy"),
        // The waypoint itself skips it; a gateway skips it unless the service demands it.
        (7, "10.1.0.4:80", "10.1.0.4:80>0 1 of 1"),
        (7, "10.1.0.6:80", "10.1.0.6:80>0 1 of 1"),
        (8, "10.1.0.5:80", "10.1.0.5:80>0 1 of 1"),
        (8, "10.1.0.6:80", "proxy"),
        // The waypoint terminates HBONE itself, also on this node.
        (1, "10.0.0.7:80", "proxy"),
        // A gateway's own tunnel.
        (8, "10.0.1.1:15008", "10.0.1.1:15008>0 1 of 1"),
        (1, "10.0.1.1:15008", "proxy"),
        // The proxy resolves host names and reaches other networks: their shares.
        (1, "10.1.0.7:80", "proxy"),
        (1, "10.1.0.8:80", "10.0.2.2:80>0 1 of 3"),
        // A private service does not exist for this client.
        (1, "10.1.0.9:80", "10.1.0.9:80>0 1 of 1"),
    ] {
        assert_eq!(
            shown_entry(pod, to, &PathSettings::default()),
            expected,
            "{pod} {to}"
        );
    }
}

#[test]
fn a_new_waypoint_ends_connections_that_bypass_it() {
    use Opener::{Pod, Proxy};
    let view = view(&PathSettings::default());
    for (pod, dialled, server, expected) in [
        // To the same backend: through a service with a waypoint, and through one without.
        (1, "10.1.0.1:80", ("10.0.2.1:8080", 0), Fate::Stays),
        (1, "10.1.0.3:80", ("10.0.2.1:8080", 0), Fate::Ends),
        (1, "10.1.0.5:80", ("10.1.0.5:80", 0), Fate::Ends),
        (1, "10.0.0.6:80", ("10.0.0.6:80", 6), Fate::Ends),
        (7, "10.1.0.3:80", ("10.0.0.3:80", 3), Fate::Stays),
        (8, "10.1.0.6:80", ("10.1.0.6:80", 0), Fate::Ends),
        // A gateway's own tunnel stays; from another source it would be a bypass into the mesh.
        (8, "10.0.1.1:15008", ("10.0.1.1:15008", 0), Fate::Stays),
        (1, "10.0.1.1:15008", ("10.0.1.1:15008", 0), Fate::Drains),
        // A direct connection to a workload that terminates HBONE itself.
        (1, "10.0.0.7:80", ("10.0.0.7:80", 7), Fate::Ends),
    ] {
        for opener in [Pod, Proxy] {
            let connection = FastPathConnection {
                dialled: dialled.parse().unwrap(),
                ..open((pod, server.1), opener, "10.0.0.1:9", server.0)
            };
            assert_eq!(fate(&connection, &view), expected, "{connection:?}");
        }
    }
}

#[test]
fn either_pod_can_demand_a_tunnel_and_both_must_allow_the_join() {
    let tunnel = AllowedPaths {
        same_node: SameNode::Tunnel,
        ..AllowedPaths::default()
    };
    let with = |mesh, of: &[(&str, AllowedPaths)]| PathSettings {
        mesh,
        overrides: of
            .iter()
            .map(|(uid, own)| (Uid((*uid).into()), *own))
            .collect(),
    };
    let direct = "10.0.0.2:80>2 1 of 1";
    for (paths, expected) in [
        (with(tunnel, &[]), "proxy"),
        (with(AllowedPaths::default(), &[("a", tunnel)]), "proxy"),
        (with(AllowedPaths::default(), &[("b", tunnel)]), "proxy"),
        (with(AllowedPaths::default(), &[("c", tunnel)]), direct),
        (with(joined(), &[]), "10.0.0.2:80>2 1 joined of 1"),
        (with(joined(), &[("b", AllowedPaths::default())]), direct),
        (with(AllowedPaths::default(), &[("a", joined())]), direct),
    ] {
        assert_eq!(shown_entry(1, "10.0.0.2:80", &paths), expected, "{paths:?}");
    }
    // A destination outside the mesh cannot be encrypted, and has no local socket to join.
    assert_eq!(
        shown_entry(1, "192.0.2.1:443", &with(tunnel, &[])),
        "192.0.2.1:443>0 1 of 1"
    );
    assert_eq!(
        shown_entry(1, "192.0.2.1:443", &with(joined(), &[])),
        "192.0.2.1:443>0 1 of 1"
    );
}

#[test]
fn plaintext_from_outside_is_authorized() {
    let view = view(&PathSettings::default());
    for (pod, to, expected) in [
        (3, "10.0.0.3:80", true),
        // The policy of b requires a principal, and plaintext has none.
        (2, "10.0.0.2:80", false),
        // A DENY of a principal does not match plaintext.
        (5, "10.0.0.5:80", true),
        // Not its address; expects a PROXY header; not on this node.
        (3, "10.0.0.2:80", false),
        (4, "10.0.0.4:80", false),
        (9, "10.0.0.3:80", false),
    ] {
        let entry = InboundEntry {
            pod: NetnsCookie(pod),
            to: to.parse().unwrap(),
            from: "192.0.2.9".parse().unwrap(),
        };
        assert_eq!(inbound_allowed(&entry, &view), expected, "{pod} {to}");
        let given = given_entry(&entry, None, &view);
        assert_eq!(given, expected.then_some(entry), "{pod} {to}");
        // The entry is for plaintext. A tunnel gives none.
        let identity = Identity::new("cluster.local", "default", "a").unwrap();
        assert_eq!(given_entry(&entry, Some(&identity), &view), None);
    }
}

/// The entry that the authorization of a connection gives.
fn given_entry(
    entry: &InboundEntry,
    source: Option<&Identity>,
    view: &View,
) -> Option<InboundEntry> {
    let request = InboundRequest {
        workload: view.workload(entry.pod)?,
        source,
        source_ip: entry.from,
        destination: entry.to,
        http: None,
    };
    inbound_entry(entry.pod, &request, &authorize(&request, &view.mesh), view)
}

/// An open connection: the watched pod, the destination pod or 0, and both addresses.
fn open(
    (pod, server_pod): (u64, u64),
    opener: Opener,
    client: &str,
    server: &str,
) -> FastPathConnection {
    FastPathConnection {
        pod: NetnsCookie(pod),
        server_pod: Some(NetnsCookie(server_pod)).filter(|cookie| cookie.0 != 0),
        opener,
        client: client.parse().unwrap(),
        server: server.parse().unwrap(),
        dialled: "10.1.0.1:80".parse().unwrap(),
        socket: 1,
        opened: 0,
    }
}

#[test]
fn what_happens_to_open_connections() {
    use Opener::{Outside, Pod, Proxy};
    let view = view(&PathSettings::default());
    for (pods, opener, client, server, expected) in [
        ((1, 2), Pod, "10.0.0.1:9", "10.0.0.2:8080", Fate::Stays),
        ((1, 2), Proxy, "10.0.0.1:9", "10.0.0.2:8080", Fate::Stays),
        ((3, 2), Pod, "10.0.0.3:9", "10.0.0.2:8080", Fate::Ends),
        ((1, 5), Pod, "10.0.0.1:9", "10.0.0.5:8080", Fate::Ends),
        // Outside the mesh, and a destination that has joined the mesh since.
        ((1, 0), Pod, "10.0.0.1:9", "192.0.2.1:80", Fate::Stays),
        ((1, 0), Pod, "10.0.0.1:9", "10.0.1.1:80", Fate::Drains),
        ((1, 0), Pod, "10.0.0.1:9", "10.0.0.2:80", Fate::Drains),
        ((3, 3), Outside, "192.0.2.1:9", "10.0.0.3:80", Fate::Stays),
        ((2, 2), Outside, "192.0.2.1:9", "10.0.0.2:80", Fate::Ends),
        // Pods that this node no longer serves.
        ((9, 2), Pod, "10.0.0.9:9", "10.0.0.2:80", Fate::Stays),
        ((1, 9), Pod, "10.0.0.1:9", "10.0.0.9:80", Fate::Stays),
    ] {
        let connection = open(pods, opener, client, server);
        assert_eq!(fate(&connection, &view), expected, "{connection:?}");
    }
}

/// The proxy opens plaintext connections for such a pod, and every change of the mesh decides about them.
#[test]
fn connections_of_a_pod_that_is_only_announced_stay_and_those_to_it_end() {
    let announced = Workload::new("new", "new", "default", "new").unwrap();
    let pod = LocalPod {
        uid: Uid("new".into()),
        account: Some("new".into()),
        announced: Some(Arc::new(announced)),
        cookie: NetnsCookie(20),
        addresses: vec!["10.0.0.20".parse().unwrap()],
        redirected: false,
        leaving: false,
    };
    let known = view(&PathSettings::default());
    let pods = known.pods().cloned().chain([pod]);
    let view = View::new(known.mesh.clone(), pods, &PathSettings::default());
    let outside = open((20, 0), Opener::Proxy, "10.0.0.20:9", "192.0.2.1:80");
    assert_eq!(fate(&outside, &view), Fate::Stays);
    let to_it = open((20, 20), Opener::Outside, "192.0.2.1:9", "10.0.0.20:80");
    assert_eq!(fate(&to_it, &view), Fate::Ends);
}

/// It is no longer captured: new connections in the kernel would bypass its policies, and open ones are
/// left alone as those of a pod that is gone.
#[test]
fn the_kernel_carries_no_new_connections_of_a_pod_that_leaves() {
    let all = view(&PathSettings::default());
    let key = |cookie, destination: &str| FastPathKey {
        pod: NetnsCookie(cookie),
        destination: destination.parse().unwrap(),
    };
    let (to_b, of_b) = (key(1, "10.0.0.2:8080"), key(2, "192.0.2.1:80"));
    let inbound = InboundEntry {
        pod: NetnsCookie(3),
        to: "10.0.0.3:80".parse().unwrap(),
        from: "192.0.2.1".parse().unwrap(),
    };
    let allowed = |view: &View| {
        let entries = [&to_b, &of_b].map(|key| entry_after_change(key, &[], view).is_some());
        (entries, inbound_allowed(&inbound, view))
    };
    assert_eq!(allowed(&all), ([true, true], true));
    let leaving = all.pods().cloned().map(|pod| LocalPod {
        leaving: pod.cookie != NetnsCookie(1),
        ..pod
    });
    let view = View::new(all.mesh.clone(), leaving, &PathSettings::default());
    assert_eq!(allowed(&view), ([false, false], false));
    for (pods, opener, client, server) in [
        ((3, 2), Opener::Pod, "10.0.0.3:9", "10.0.0.2:8080"),
        ((1, 5), Opener::Pod, "10.0.0.1:9", "10.0.0.5:8080"),
        ((2, 2), Opener::Outside, "192.0.2.1:9", "10.0.0.2:80"),
    ] {
        let connection = open(pods, opener, client, server);
        assert_eq!(fate(&connection, &all), Fate::Ends, "{connection:?}");
        assert_eq!(fate(&connection, &view), Fate::Stays, "{connection:?}");
    }
}

/// A SYN that is about to leave by an entry is like an open connection.
#[test]
fn an_entry_is_retired_only_if_its_connections_may_go_on() {
    let view = view(&PathSettings::default());
    let from_a = |destination: &str, server: Option<u64>| {
        let key = FastPathKey {
            pod: NetnsCookie(1),
            destination: destination.parse().unwrap(),
        };
        let backend = Backend {
            to: key.destination,
            server: server.map(NetnsCookie),
            weight: 1,
            join_mode: JoinMode::Apart,
        };
        let entry = FastPathEntry {
            backends: SmallVec::from_iter([backend]),
            total: 1,
        };
        assert!(entry_after_change(&key, &[], &view).is_none_or(|now| now != entry));
        opened_may_go_on(&key, &entry, &view)
    };
    // It has joined the mesh on another node, and it was never on this one.
    assert!(from_a("10.0.1.1:80", None));
    assert!(from_a("10.0.9.9:80", Some(99)));
    // Policy denies it, or a waypoint would be bypassed.
    assert!(!from_a("10.0.0.5:8080", Some(5)));
    assert!(!from_a("10.0.0.6:8080", Some(6)));
}

#[test]
fn a_direct_connection_is_terminated_when_encryption_is_demanded() {
    let tunnel = PathSettings {
        mesh: AllowedPaths {
            same_node: SameNode::Tunnel,
            ..AllowedPaths::default()
        },
        ..PathSettings::default()
    };
    for opener in [Opener::Pod, Opener::Proxy] {
        let connection = open((1, 2), opener, "10.0.0.1:9", "10.0.0.2:8080");
        assert_eq!(fate(&connection, &view(&tunnel)), Fate::Ends);
    }
}

#[test]
fn backends_beyond_the_limit_of_an_entry_leave_their_share_to_the_proxy() {
    let mut workloads = String::from(
        "{ uid: a, name: a, serviceAccount: a, workloadIps: [10.0.0.1], protocol: HBONE }",
    );
    let mut pods = vec![("a".to_owned(), 1, "10.0.0.1".to_owned())];
    for number in 1..=12_u64 {
        let address = format!("10.0.9.{number}");
        workloads.push_str(&format!(
            ", {{ uid: w{number}, name: w{number}, workloadIps: [{address}], protocol: HBONE, services: {{ default/s: {{ 80: 80 }} }} }}"
        ));
        pods.push((format!("w{number}"), 10 + number, address));
    }
    let text = format!(
        "{{ workloads: [{workloads}], services: [{{ name: s, hostname: s, vips: [/10.1.0.1], ports: {{ 80: 80 }} }}] }}"
    );
    let mesh = Arc::new(local::parse(&text).unwrap().into_snapshot());
    let pods = pods.into_iter().map(|(uid, cookie, address)| LocalPod {
        uid: Uid(uid.as_str().into()),
        account: None,
        announced: None,
        cookie: NetnsCookie(cookie),
        addresses: vec![address.parse().unwrap()],
        redirected: false,
        leaving: false,
    });
    let view = View::new(mesh, pods, &PathSettings::default());
    let call = FastPathKey {
        pod: NetnsCookie(1),
        destination: "10.1.0.1:80".parse().unwrap(),
    };
    let found = entry_after_change(&call, &[], &view).unwrap();
    assert_eq!(found.backends.len(), MAX_BACKENDS);
    assert_eq!(found.total, 12);
}
