//! Which of the services that a workload backs a connection was meant for, as Istio's ztunnel guesses
//! it: for the records of the destination's end, and for nothing else.

use std::sync::Arc;

use crate::{Ports, Service, Snapshot, Workload};

/// The service that the client says it has dialled, if the workload backs one of that name; else
/// the first of its services that leads to the port.
pub fn backed(
    workload: &Workload,
    mesh: &Snapshot,
    said: Option<&str>,
    port: u16,
) -> Option<Arc<Service>> {
    let services = || {
        let all = workload.services.iter();
        all.filter_map(|(key, own)| Some((mesh.service(key)?, &**own)))
    };
    let named = said.and_then(|said| {
        services().find(|(service, _)| service.hostname.eq_ignore_ascii_case(said))
    });
    let leads_there = |(service, own): &(&Arc<Service>, &Ports)| {
        let mut ports = service.ports.iter();
        // A target of 0 is none: it leaves the port to each backend.
        port != 0 && ports.any(|(from, to)| *to == port || own.get(from) == Some(&port))
    };
    let found = named.or_else(|| services().find(leads_there));
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
    fn what_the_client_says_counts_if_it_may_be_then_the_port() {
        let mesh = local::parse(MESH).unwrap().into_snapshot();
        let pod = mesh.workload_by_uid(&Uid("pod".into())).unwrap();
        let named = |said, port| {
            let service = backed(pod, &mesh, said, port);
            service.map(|service| service.name.to_string())
        };
        for (said, port, expected) in [
            (None, 8282, Some("two")),
            (None, 8181, Some("one")),
            // Its own port of a service that leaves it to its backends.
            (None, 7070, Some("named")),
            (None, 0, None),
            (None, 9090, None),
            (Some("two"), 8080, Some("two")),
            (Some("ONE"), 1, Some("one")),
            // Not a service of this workload, or of the mesh: it is not believed.
            (Some("other"), 8282, Some("two")),
            (Some("nobody"), 9090, None),
        ] {
            assert_eq!(named(said, port).as_deref(), expected, "{said:?} {port}");
        }
        assert!(named(None, 8080).is_some());
    }
}
