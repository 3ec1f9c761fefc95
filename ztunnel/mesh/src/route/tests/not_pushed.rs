//! Pods of the node that the mesh does not know yet: they are not outside.

use std::sync::Arc;

use super::{check, check_in, local};
use crate::route::{Decision, OutboundRequest, route};
use crate::{LocalPod, Missing, NetnsCookie, PathSettings, Snapshot, Uid, View};

const MESH: &str = r#"
workloads:
- { uid: src, name: src, workloadIps: ["10.0.0.1"], protocol: HBONE }
- { uid: in, name: in, workloadIps: ["10.0.0.8"], protocol: HBONE, nativeTunnel: true }
- { uid: b, name: b, serviceAccount: b, workloadIps: ["10.0.1.1"], protocol: HBONE }
- { uid: named, name: named, hostname: named.example, services: { default/named: {} } }
services:
- { name: named, hostname: named, vips: ["/10.1.0.5"], ports: { 80: 80 } }
- { name: kept, hostname: kept, ranges: ["/10.3.0.0/16"], loadBalancer: { mode: Passthrough } }
"#;

#[test]
fn a_pod_that_is_not_pushed_yet_is_not_reached_in_the_clear() {
    check(
        MESH,
        10,
        "
        src here new@10.0.3.3 -> 10.0.3.3:80 => needs workload new
        src here new@10.0.3.3 -> [::ffff:10.0.3.3]:80 => needs workload new
        src here new@10.3.0.3 -> 10.3.0.3:80 => needs workload new
        src here new@10.0.3.3 with named.example=10.0.3.3 -> 10.1.0.5:80 => needs workload new
        # Others are what they were.
        src here new@10.0.3.3 -> 10.0.3.4:80 => passthrough unknown 10.0.3.4:80
        src here b,new@10.0.3.3 -> 10.0.1.1:80 => direct b 10.0.1.1:80
        # A second address of a pod that is known is its own.
        src here b@10.0.3.3 -> 10.0.3.3:80 => passthrough unknown 10.0.3.3:80
        # So is the source's own address, even where a new pod has the same one.
        b here b@10.0.3.3,new@10.0.3.3 -> 10.0.3.3:80 => passthrough unknown 10.0.3.3:80
        # A tunnel of a gateway's own waits at its other end.
        in here new@10.0.3.3 -> 10.0.3.3:15008 => passthrough unknown 10.0.3.3:15008
        in here new@10.0.3.3 -> 10.0.3.3:80 => needs workload new
        ",
    );
}

#[test]
fn a_pod_that_the_control_plane_does_not_know_is_not_outside_either() {
    let mesh: Snapshot = local::parse(MESH).unwrap().into_snapshot();
    check_in(
        mesh.partial(),
        2,
        "
        src here new@10.0.3.3 -> 10.0.3.3:80 => needs resource /10.0.3.3
        src here new@10.0.3.3 absent /10.0.3.3 -> 10.0.3.3:80 => needs workload new
        ",
    );
}

#[test]
fn a_replacement_with_the_uid_of_the_source_is_another_pod() {
    let mesh = Arc::new(local::parse(MESH).unwrap().into_snapshot());
    let pod = |cookie, account: &str, address: &str| LocalPod {
        uid: Uid("b".into()),
        account: Some(account.into()),
        announced: None,
        cookie: NetnsCookie(cookie),
        addresses: vec![address.parse().unwrap()],
        redirected: false,
        leaving: false,
    };
    // The workload of the mesh is that of the first pod.
    let pods = [pod(1, "b", "10.0.1.1"), pod(2, "new-account", "10.0.3.3")];
    let view = View::new(mesh.clone(), pods, &PathSettings::default());
    let source = view.workload(NetnsCookie(1)).unwrap();
    let request = OutboundRequest::new(source, "10.0.3.3:80".parse().unwrap());
    let decision = route(&request, &view, 0);
    let expected = Missing::LocalWorkload(Uid("b".into()));
    assert_eq!(decision, Decision::Needs(expected));
}
