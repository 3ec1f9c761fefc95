//! Where connections go, by example: a mesh as people write it, who dials what, and the answer.

use super::super::view::Lanes;
use super::*;
use crate::mesh::local;

const MESH: &str = r#"
workloads:
- { uid: src, name: src, serviceAccount: src, workloadIps: ["10.0.0.1", "fd00::1"], protocol: HBONE, node: node-a,
    clusterId: c1, locality: { region: r1, zone: z1 } }
- { uid: b1, name: b1, serviceAccount: b, workloadIps: ["10.0.0.2", "fd00::2"], protocol: HBONE, node: node-a,
    clusterId: c1, locality: { region: r1, zone: z1 },
    services: { default/b: { 80: 8080 }, default/near: {}, default/strict: {}, default/all: {}, default/named: { 80: 9090 } } }
- { uid: b2, name: b2, serviceAccount: b, workloadIps: ["10.0.0.3"], protocol: HBONE, node: node-b, capacity: 3,
    clusterId: c1, locality: { region: r1, zone: z2 },
    services: { default/b: {}, default/near: {}, default/strict: {}, default/named: {} } }
- { uid: b3, name: b3, serviceAccount: b, workloadIps: ["10.0.0.4"], protocol: HBONE, node: node-c, status: Unhealthy,
    services: { default/b: {}, default/sick: {}, default/all: {} } }
- { uid: zero, name: zero, workloadIps: ["10.0.0.5"], protocol: HBONE, capacity: 0, services: { default/b: {} } }
- { uid: plain, name: plain, workloadIps: ["10.0.0.6"], services: { default/plain: { 80: 8081 } } }
- { uid: host, name: host, workloadIps: ["10.0.0.7"], protocol: HBONE, networkMode: HostNetwork }
- { uid: behind, name: behind, workloadIps: ["10.0.0.8"], protocol: HBONE, services: { default/b9: { 80: 80 } },
    waypoint: { destination: default/waypoint } }
- { uid: waypoint, name: waypoint, serviceAccount: waypoint, workloadIps: ["10.0.0.9"], protocol: HBONE,
    services: { default/waypoint: { 80: 80 } } }
- { uid: far, name: far, workloadIps: ["10.0.0.2"], protocol: HBONE, network: remote, services: { default/far: {}, default/b: {} } }
- { uid: nowhere, name: nowhere, protocol: HBONE, services: { default/nowhere: {} } }
services:
- { name: b, hostname: b, vips: ["/10.1.0.1", "/fd01::1"], ports: { 80: 80 }, subjectAltNames: ["spiffe://cluster.local/ns/x/sa/other"] }
- { name: near, hostname: near, vips: ["/10.1.0.2"], ports: { 80: 80 }, loadBalancer: { mode: Failover, routingPreferences: [Region, Zone, Node] } }
- { name: strict, hostname: strict, vips: ["/10.1.0.3"], ports: { 80: 80 }, loadBalancer: { mode: Strict, routingPreferences: [Node] } }
- { name: all, hostname: all, vips: ["/10.1.0.4"], ports: { 80: 80 }, loadBalancer: { healthPolicy: AllowAll } }
- { name: sick, hostname: sick, vips: ["/10.1.0.5"], ports: { 80: 80 } }
- { name: plain, hostname: plain, vips: ["/10.1.0.6"], ports: { 80: 80 } }
- { name: through, hostname: through, vips: ["/10.1.0.7"], ports: { 80: 80 }, loadBalancer: { mode: Passthrough } }
- { name: guarded, hostname: guarded, vips: ["/10.1.0.8"], ports: { 80: 80 }, waypoint: { destination: /10.1.0.10 } }
- { name: named, hostname: named, vips: ["/10.1.0.9"], ports: { 80: 0 } }
- { name: waypoint, hostname: waypoint, vips: ["/10.1.0.10"], ports: { 80: 80 } }
- { name: far, hostname: far, vips: ["/10.1.0.11"], ports: { 80: 80 } }
- { name: empty, hostname: empty, vips: ["/10.1.0.12"], ports: { 80: 80 } }
- { name: nowhere, hostname: nowhere, vips: ["/10.1.0.13"], ports: { 80: 80 } }
- { name: b9, hostname: b9, vips: ["/10.1.0.14"], ports: { 80: 80 } }
"#;

fn mesh() -> Arc<Snapshot> {
    Arc::new(local::parse(MESH).unwrap().into_snapshot())
}

fn dial_as(
    snapshot: &Arc<Snapshot>,
    source: &str,
    to: &str,
    dice: u64,
) -> Result<Route, RouteError> {
    let source = snapshot.workload_by_uid(&Uid(source.into())).unwrap();
    route(
        &Departure {
            source,
            destination: to.parse().unwrap(),
            except: &[],
        },
        &View::new(snapshot.clone(), [], &Lanes::default()),
        dice,
    )
}

fn dial(to: &str) -> Result<Route, RouteError> {
    dial_as(&mesh(), "src", to, 0)
}

/// `lane workload address [service]`.
fn show(route: &Route) -> String {
    let service = |service: &Option<Arc<Service>>| {
        service
            .as_ref()
            .map(|service| format!(" of {}", service.name))
            .unwrap_or_default()
    };
    match route {
        Route::Passthrough {
            to,
            workload,
            service: of,
        } => {
            let name = workload
                .as_ref()
                .map_or("unknown", |workload| &workload.name);
            format!("passthrough {name} {to}{}", service(of))
        }
        Route::Direct {
            to,
            workload,
            service: of,
            ..
        } => format!("direct {} {to}{}", workload.name, service(of)),
        Route::Tunnel {
            to,
            hbone,
            workload,
            service: of,
            ..
        } => {
            assert_eq!((hbone.ip(), hbone.port()), (to.ip(), 15008));
            format!("tunnel {} {to}{}", workload.name, service(of))
        }
    }
}

#[test]
fn by_what_is_dialled() {
    for (to, expected) in [
        ("192.0.2.1:443", "passthrough unknown 192.0.2.1:443"),
        ("10.0.0.2:9999", "tunnel b1 10.0.0.2:9999"),
        ("[fd00::2]:80", "tunnel b1 [fd00::2]:80"),
        ("[::ffff:10.0.0.2]:80", "tunnel b1 10.0.0.2:80"),
        ("10.0.0.4:80", "tunnel b3 10.0.0.4:80"),
        ("10.0.0.5:80", "tunnel zero 10.0.0.5:80"),
        ("10.0.0.6:80", "passthrough plain 10.0.0.6:80"),
        ("10.0.0.7:80", "passthrough host 10.0.0.7:80"),
        ("10.1.0.1:80", "tunnel b1 10.0.0.2:8080 of b"),
        ("[fd01::1]:80", "tunnel b1 [fd00::2]:8080 of b"),
        ("10.1.0.6:80", "passthrough plain 10.0.0.6:8081 of plain"),
        (
            "10.1.0.7:1234",
            "passthrough unknown 10.1.0.7:1234 of through",
        ),
        ("10.1.0.9:80", "tunnel b1 10.0.0.2:9090 of named"),
        // A workload's waypoint stands before connections that dial the workload.
        ("10.1.0.14:80", "tunnel behind 10.0.0.8:80 of b9"),
    ] {
        assert_eq!(show(&dial(to).unwrap()), expected, "{to}");
    }
}

#[test]
fn what_is_refused() {
    for (to, reason, message) in [
        (
            "10.1.0.1:81",
            "no_such_port",
            "service default/b has no port 81",
        ),
        (
            "10.1.0.5:80",
            "no_healthy_backend",
            "service default/sick has no healthy backend for port 80: 1 endpoints are known, none of \
             them healthy, with a capacity, a target port and the locality that the service demands",
        ),
        (
            "10.1.0.12:80",
            "no_healthy_backend",
            "service default/empty has no healthy backend for port 80: 0 endpoints are known, none \
             of them healthy, with a capacity, a target port and the locality that the service demands",
        ),
        (
            "10.1.0.13:80",
            "no_address",
            "none of the backends of service default/nowhere has an address",
        ),
        (
            "10.1.0.11:80",
            "other_network",
            "the backends of service default/far are in network \"remote\", the source is in \"\", and \
             this proxy cannot go through network gateways",
        ),
        (
            "10.1.0.8:80",
            "waypoint_unsupported",
            "service default/guarded is behind the waypoint /10.1.0.10, and this proxy cannot go \
             through waypoints: refused, because going around it would go around its policies",
        ),
        (
            "10.0.0.8:80",
            "waypoint_unsupported",
            "workload behind is behind the waypoint default/waypoint, and this proxy cannot go \
             through waypoints: refused, because going around it would go around its policies",
        ),
    ] {
        let error = dial(to).unwrap_err();
        assert_eq!(
            (error.reason(), error.to_string().as_str()),
            (reason, message),
            "{to}"
        );
    }
}

#[test]
fn the_waypoint_itself_goes_on() {
    let snapshot = mesh();
    assert!(dial_as(&snapshot, "waypoint", "10.0.0.8:80", 0).is_ok());
    let refused = dial_as(&snapshot, "waypoint", "10.1.0.8:80", 0).unwrap_err();
    assert_eq!(refused.reason(), "no_healthy_backend");
}

#[test]
fn the_other_end_must_be_the_backend_or_speak_for_the_service() {
    let expected = |to: &str| match dial(to).unwrap() {
        Route::Tunnel { expected, .. } => expected
            .iter()
            .map(|id| id.principal().to_owned())
            .collect::<Vec<_>>(),
        Route::Passthrough { .. } | Route::Direct { .. } => panic!("no tunnel"),
    };
    assert_eq!(expected("10.0.0.2:80"), ["cluster.local/ns/default/sa/b"]);
    assert_eq!(
        expected("10.1.0.1:80"),
        [
            "cluster.local/ns/default/sa/b",
            "cluster.local/ns/x/sa/other"
        ]
    );
}

/// Who is chosen for each of the first throws of the dice.
fn chosen(to: &str, throws: u64) -> Vec<String> {
    let snapshot = mesh();
    let throw = |dice| match dial_as(&snapshot, "src", to, dice).unwrap() {
        Route::Tunnel { workload, .. } => workload.name.to_string(),
        Route::Passthrough { to, .. } | Route::Direct { to, .. } => to.to_string(),
    };
    (0..throws).map(throw).collect()
}

#[test]
fn the_dice_hit_by_capacity() {
    // b3 is unhealthy, zero has no capacity, far is in another network.
    assert_eq!(
        chosen("10.1.0.1:80", 8),
        ["b1", "b2", "b2", "b2", "b1", "b2", "b2", "b2"]
    );
    assert_eq!(chosen("10.1.0.1:80", u64::from(u8::MAX)).len(), 255);
    let snapshot = mesh();
    assert!(dial_as(&snapshot, "src", "10.1.0.1:80", u64::MAX).is_ok());
}

#[test]
fn the_nearest_go_first() {
    assert_eq!(chosen("10.1.0.2:80", 4), ["b1"; 4], "region, zone and node");
    assert_eq!(chosen("10.1.0.3:80", 4), ["b1"; 4], "only on the same node");
    let snapshot = mesh();
    let refused = dial_as(&snapshot, "plain", "10.1.0.3:80", 0).unwrap_err();
    assert_eq!(
        refused.reason(),
        "no_healthy_backend",
        "nobody on that node"
    );
    assert!(
        dial_as(&snapshot, "plain", "10.1.0.2:80", 0).is_ok(),
        "failover goes anywhere"
    );
}

#[test]
fn everybody_counts_where_health_does_not() {
    assert_eq!(chosen("10.1.0.4:80", 4), ["b1", "b3", "b1", "b3"]);
}

#[test]
fn a_pod_of_this_node_is_called_without_a_tunnel() {
    let here = [("src", 1, "10.0.0.1"), ("b1", 2, "10.0.0.2")].map(|(uid, cookie, address)| {
        super::super::view::LocalPod {
            uid: Uid(uid.into()),
            cookie: NetnsCookie(cookie),
            addresses: vec![address.parse().unwrap()],
        }
    });
    let view = View::new(mesh(), here, &Lanes::default());
    let source = view.mesh.workload_by_uid(&Uid("src".into())).unwrap();
    let dial = |to: &str, except: &[SocketAddr], dice| {
        let departure = Departure {
            source,
            destination: to.parse().unwrap(),
            except,
        };
        show(&route(&departure, &view, dice).unwrap())
    };
    assert_eq!(dial("10.0.0.2:9999", &[], 0), "direct b1 10.0.0.2:9999");
    // The address is not one under which it is captured here.
    assert_eq!(dial("[fd00::2]:80", &[], 0), "tunnel b1 [fd00::2]:80");
    assert_eq!(dial("10.0.0.3:80", &[], 0), "tunnel b2 10.0.0.3:80");
    // The kernel had the dice: what it could have chosen is not chosen again.
    let local = ["10.0.0.2:8080".parse().unwrap()];
    for dice in 0..8 {
        assert_eq!(
            dial("10.1.0.1:80", &local, dice),
            "tunnel b2 10.0.0.3:80 of b"
        );
    }
    // Unless there is nobody else.
    let all: [SocketAddr; 2] = [local[0], "10.0.0.3:80".parse().unwrap()];
    assert_eq!(dial("10.1.0.1:80", &all, 0), "direct b1 10.0.0.2:8080 of b");
}
