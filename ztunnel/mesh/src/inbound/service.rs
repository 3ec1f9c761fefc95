//! The service that a connection to a workload was dialled for, as Istio's ztunnel guesses it. Used
//! only for the connection reports of the destination.

use std::sync::Arc;

use crate::{Ports, Service, Snapshot, Workload};

/// The service with the host name that the client reported, if the workload backs it; otherwise the
/// first of its services with this target port.
pub fn backed_service(
    workload: &Workload,
    mesh: &Snapshot,
    reported: Option<&str>,
    port: u16,
) -> Option<Arc<Service>> {
    let services = || {
        let all = workload.services.iter();
        all.filter_map(|(key, own)| Some((mesh.service(key)?, &**own)))
    };
    let named = reported.and_then(|reported| {
        services().find(|(service, _)| service.hostname.eq_ignore_ascii_case(reported))
    });
    let has_target = |(service, own): &(&Arc<Service>, &Ports)| {
        let mut ports = service.ports.iter();
        // A target of 0 leaves the port to each backend.
        port != 0 && ports.any(|(from, to)| *to == port || own.get(from) == Some(&port))
    };
    let found = named.or_else(|| services().find(has_target));
    found.map(|(service, _)| service.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Uid, local};

    const MESH: &str = r#"
workloads:
- { uid: pod, name: pod, workloadIps: ["10.0.0.2"], protocol: HBONE,
    services: { default/gone: { 80: 80 }, default/one: { 80: 8080 }, default/named: { 80: 7070 }, default/two: {} } }
services:
- { name: one, hostname: one, vips: ["/10.1.0.1"], ports: { 80: 8080, 81: 8181 } }
- { name: two, hostname: two, vips: ["/10.1.0.2"], ports: { 80: 8080, 82: 8282 } }
- { name: named, hostname: named, vips: ["/10.1.0.3"], ports: { 80: 0 } }
- { name: other, hostname: other, vips: ["/10.1.0.4"], ports: { 80: 9090 } }
"#;

    #[test]
    fn the_reported_host_name_is_used_if_it_fits_otherwise_the_port() {
        let mesh = local::parse(MESH).unwrap().into_snapshot();
        let pod = mesh.workload_by_uid(&Uid("pod".into())).unwrap();
        let named = |reported, port| {
            let service = backed_service(pod, &mesh, reported, port);
            service.map(|service| service.name.to_string())
        };
        for (reported, port, expected) in [
            (None, 8282, Some("two")),
            (None, 8181, Some("one")),
            // The workload's own target port of a service that leaves it to each backend.
            (None, 7070, Some("named")),
            (None, 0, None),
            (None, 9090, None),
            (Some("two"), 8080, Some("two")),
            (Some("ONE"), 1, Some("one")),
            // A host name of no service of this workload, or of the mesh, is ignored.
            (Some("other"), 8282, Some("two")),
            (Some("unknown"), 9090, None),
        ] {
            assert_eq!(
                named(reported, port).as_deref(),
                expected,
                "{reported:?} {port}"
            );
        }
        assert!(named(None, 8080).is_some());
    }
}
