//! The steps of an explanation. That its result is the decision is checked for every table.

use super::*;
use CandidateOutcome::{Chosen, Eligible, Excluded};

const MESH: &str = r#"
workloads:
- { uid: src, name: src, workloadIps: ["10.0.0.1"], protocol: HBONE, node: n }
- { uid: b1, name: b1, workloadIps: ["10.0.1.1"], protocol: HBONE, node: n, services: { default/b: { 80: 8080 } } }
- { uid: b2, name: b2, workloadIps: ["10.0.1.2"], protocol: HBONE, node: n, services: { default/b: { 80: 8080 } } }
- { uid: b3, name: b3, workloadIps: ["10.0.1.3"], protocol: HBONE, node: m, services: { default/b: { 80: 8080 } } }
- { uid: b4, name: b4, workloadIps: ["10.0.1.4"], status: Unhealthy, services: { default/b: { 80: 8080 } } }
- { uid: b5, name: b5, workloadIps: ["10.0.1.5"], capacity: 0, services: { default/b: { 80: 8080 } } }
- { uid: b6, name: b6, services: { default/b: { 80: 8080 } } }
- { uid: b7, name: b7, network: other, workloadIps: ["10.0.1.7"], services: { default/b: { 80: 8080 } } }
- { uid: w, name: w, workloadIps: ["10.0.2.1"], protocol: HBONE, waypoint: { destination: default/wp } }
- { uid: wp, name: wp, workloadIps: ["10.0.3.1"], protocol: HBONE, nativeTunnel: true, services: { default/wp: {} } }
services:
- { name: b, hostname: b, vips: ["/10.1.0.1"], ports: { 80: 80 }, loadBalancer: { mode: Failover, routingPreferences: [Node] } }
- { name: wp, hostname: wp, ports: { 15008: 15008 } }
"#;

fn steps(source: &str, destination: &str) -> Vec<Step> {
    let mesh = Arc::new(local::parse(MESH).unwrap().into_snapshot());
    let view = View::new(mesh.clone(), [], &PathSettings::default());
    let source = mesh.workload_by_uid(&Uid(source.into())).unwrap();
    let request = OutboundRequest::new(source, destination.parse().unwrap());
    let explained = explain(&request, &view, 0);
    assert_eq!(explained.decision, route(&request, &view, 0));
    explained.steps
}

#[test]
fn every_endpoint_of_a_service_is_listed_with_its_outcome() {
    let steps = steps("src", "10.1.0.1:80");
    let [
        Step::Dialled(Dialled::Service(service)),
        Step::Waypoint(WaypointStep::None),
        Step::Choice {
            port: 80,
            candidates,
            ..
        },
    ] = &steps[..]
    else {
        panic!("{steps:?}")
    };
    assert_eq!(&*service.name, "b");
    let outcomes: Vec<_> = candidates
        .iter()
        .map(|candidate| (&*candidate.workload.name, candidate.outcome))
        .collect();
    assert_eq!(
        outcomes,
        [
            ("b1", Chosen),
            ("b2", Eligible),
            ("b3", Excluded(Exclusion::LessPreferred)),
            ("b4", Excluded(Exclusion::Unhealthy)),
            ("b5", Excluded(Exclusion::NoCapacity)),
            ("b6", Excluded(Exclusion::NoAddress)),
            ("b7", Excluded(Exclusion::NoNetworkGateway)),
        ]
    );
}

#[test]
fn the_waypoint_and_its_instances_are_listed() {
    let through = steps("src", "10.0.2.1:80");
    let [
        Step::Dialled(Dialled::Workload(_)),
        Step::Waypoint(WaypointStep::Applies(waypoints)),
        Step::Gateway {
            role: Role::Waypoint,
            found: true,
            ..
        },
        Step::Choice {
            port: 15008,
            candidates,
            ..
        },
    ] = &through[..]
    else {
        panic!("{through:?}")
    };
    assert_eq!((waypoints.len(), candidates.len()), (1, 1));
    let skipped = steps("wp", "10.0.2.1:80");
    assert!(matches!(
        &skipped[..],
        [
            Step::Dialled(Dialled::Workload(_)),
            Step::Waypoint(WaypointStep::SourceIsGateway)
        ]
    ));
    let outside = steps("src", "192.0.2.1:80");
    assert!(matches!(&outside[..], [Step::Dialled(Dialled::Outside)]));
}
