//! The client and the service in the reports of inbound connections.

use super::*;
use mesh::PathSettings;
use mesh::{Uid, local};

const MESH: &str = r#"
workloads:
- { uid: pod, name: pod, serviceAccount: pod, workloadIps: ["10.0.0.2"], protocol: HBONE,
    waypoint: { destination: "/10.0.0.9" },
    services: { default/one: { 80: 8080 }, default/two: {} } }
- { uid: told, name: told, workloadIps: ["10.0.0.4"], protocol: HBONE,
    applicationTunnel: { protocol: PROXY, port: 15088 }, services: { default/one: {} } }
- { uid: near, name: near, serviceAccount: near, workloadIps: ["10.0.0.3"], protocol: HBONE }
- { uid: wp, name: wp, serviceAccount: wp, workloadIps: ["10.0.0.9"], protocol: HBONE }
services:
- { name: one, hostname: one, vips: ["/10.1.0.1"], ports: { 80: 8080 } }
- { name: two, hostname: two, vips: ["/10.1.0.2"], ports: { 80: 8080 } }
"#;

fn view() -> View {
    let mesh = local::parse(MESH).unwrap().into_snapshot();
    View::new(Arc::new(mesh), [], &PathSettings::default())
}

fn connection(from: &str, to: &str) -> Connection {
    let trace = tunnel::hbone::TraceParent {
        trace_id: 1,
        parent_id: 1,
        flags: 0,
    };
    let client = SocketAddr::new(from.parse().unwrap(), 1000);
    let (pod, now) = (mesh::NetnsCookie(1), std::time::Instant::now());
    Connection::new(pod, client, to.parse().unwrap(), now, trace)
}

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "default", account).unwrap()
}

/// A tunnel from an address, of a peer whose baggage describes the workload `far`.
fn tunnel(from: &str, account: &str, authority: &str) -> InboundCaller {
    InboundCaller {
        connection: connection(from, "10.0.0.2:15008"),
        tunnel: Some(TunnelPeer {
            identity: identity(account),
            authority: authority.parse().unwrap(),
            forwarded: Some(from.parse().unwrap()),
            host: None,
            baggage: Baggage {
                workload: Some((mesh::WorkloadType::Deployment, "far".into())),
                ..Baggage::default()
            },
        }),
    }
}

fn asking(caller: &mut InboundCaller) -> &mut TunnelPeer {
    caller.tunnel.as_mut().unwrap()
}

#[test]
fn baggage_is_believed_only_of_whom_the_mesh_does_not_know() {
    let view = view();
    let pod = view.mesh.workload_by_uid(&Uid("pod".into())).unwrap();
    let source = |caller: &InboundCaller| {
        let client = caller.client(Some(pod), &view);
        let found = caller.source(client, "", &view)?;
        Some((found.workload_name.to_string(), found.uid.0.to_string()))
    };
    let known = |uid: &str| Some((String::new(), uid.to_owned()));
    let far = Some(("far".to_owned(), "baggage///far//".to_owned()));
    assert_eq!(
        source(&tunnel("10.0.0.3", "near", "10.0.0.2:80")),
        known("near")
    );
    assert_eq!(source(&tunnel("10.7.0.1", "far", "10.0.0.2:80")), far);
    // Through a network gateway whose own address is known.
    assert_eq!(source(&tunnel("10.0.0.3", "far", "one:80")), far);
    assert_eq!(source(&tunnel("10.0.0.3", "near", "one:80")), known("near"));
    // A waypoint states its client's address.
    let mut named = tunnel("10.0.0.9", "wp", "10.0.0.2:80");
    asking(&mut named).forwarded = Some("10.0.0.3".parse().unwrap());
    assert_eq!(source(&named), known("near"));
    // Without baggage there is no client; plaintext has no baggage.
    let mut silent = tunnel("10.7.0.1", "far", "10.0.0.2:80");
    asking(&mut silent).baggage = Baggage::default();
    assert_eq!(source(&silent), None);
    silent.tunnel = None;
    assert_eq!(source(&silent), None);
}

#[test]
fn the_service_is_what_was_said_or_what_leads_to_the_port() {
    let view = view();
    let service = |uid: &str, caller: &InboundCaller, destination: &str| {
        let workload = view.mesh.workload_by_uid(&Uid(uid.into())).unwrap();
        let destination = destination.parse().unwrap();
        let target = TunnelTarget {
            destination,
            dialled: destination,
            service: None,
        };
        let found = caller.service(Some(&target), Some(workload), &view);
        found.map(|service| service.name.to_string())
    };
    let mut caller = tunnel("10.0.0.3", "near", "10.0.0.2:8080");
    assert!(service("pod", &caller, "10.0.0.2:8080").is_some());
    assert_eq!(service("pod", &caller, "10.0.0.2:9090"), None);
    asking(&mut caller).host = Some("two".to_owned());
    let two = Some("two".to_owned());
    assert_eq!(service("pod", &caller, "10.0.0.2:8080"), two);
    assert_eq!(service("pod", &caller, "10.0.0.2:9090"), two);
    // A connection to the application's own tunnel is not for a service's port.
    assert_eq!(service("told", &caller, "10.0.0.4:8080"), None);
    asking(&mut caller).host = Some("one".to_owned());
    assert_eq!(
        service("told", &caller, "10.0.0.4:8080").as_deref(),
        Some("one")
    );
    // Plaintext has no `host`; the port determines the service.
    caller.tunnel = None;
    assert_eq!(
        service("told", &caller, "10.0.0.4:8080").as_deref(),
        Some("one")
    );
    assert_eq!(service("told", &caller, "10.0.0.4:9090"), None);
}
