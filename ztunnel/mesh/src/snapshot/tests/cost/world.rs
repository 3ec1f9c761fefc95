//! A mesh of a size: pods of deployments, each deployment behind a service of its own.

use std::net::Ipv4Addr;
use std::ops::Range;

use crate::{
    Change, Interner, Locality, NamespacedHostname, NetworkAddress, Ports, Service, TunnelProtocol,
    Uid, Workload,
};

#[derive(Debug, Clone, Copy)]
pub(super) struct World {
    pub(super) workloads: u32,
    pub(super) services: u32,
}

/// Whether a pod is one of the first, or came in the place of one of them.
#[derive(Debug, Clone, Copy)]
enum Generation {
    First,
    Second,
}

/// The names of one pod.
struct Pod {
    uid: String,
    name: String,
    namespace: String,
    account: String,
    node: String,
    app: String,
    hostname: String,
    zone: String,
    address: Ipv4Addr,
}

fn namespace(service: u32) -> String {
    format!("namespace-{}", service % 300)
}

fn app(service: u32) -> String {
    format!("application-{service}")
}

fn hostname(service: u32) -> String {
    format!("{}.{}.svc.cluster.local", app(service), namespace(service))
}

pub(super) fn vip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from((172 << 24) + service % 10_000)
}

impl World {
    fn pod(self, number: u32, generation: Generation) -> Pod {
        let service = number % self.services;
        let (namespace, app) = (namespace(service), app(service));
        let (suffix, addresses) = match generation {
            Generation::First => ("ab", 10 << 24),
            Generation::Second => ("cd", 11 << 24),
        };
        let name = format!("{app}-{service:08x}-{number:x}{suffix}");
        let uid = format!("Kubernetes//Pod/{namespace}/{name}");
        let node = number % 1000;
        Pod {
            uid,
            name,
            account: format!("{app}-account"),
            node: format!(
                "ip-10-0-{}-{}.eu-central-1.compute.internal",
                node / 250,
                node % 250
            ),
            zone: format!("eu-central-1-{}", number % 3),
            hostname: hostname(service),
            namespace,
            app,
            address: Ipv4Addr::from(addresses + number),
        }
    }

    pub(super) fn changes(self, texts: &mut Interner) -> impl Iterator<Item = Change> {
        let services: Vec<u32> = (0..self.services).collect();
        let mut workloads = 0..self.workloads;
        let mut services = services.into_iter();
        std::iter::from_fn(move || {
            if let Some(service) = services.next() {
                return Some(Change::Service(Box::new(known_service(service, texts))));
            }
            let pod = self.pod(workloads.next()?, Generation::First);
            Some(Change::Workload(Box::new(known_workload(&pod, texts))))
        })
    }

    /// Some pods go, and others come in their places.
    pub(super) fn replacements(self, pods: Range<u32>, texts: &mut Interner) -> Vec<Change> {
        let mut changes = Vec::new();
        for number in pods {
            // Far apart, so that no two of a batch are behind one service.
            let number =
                u32::try_from(u64::from(number) * 7919 % u64::from(self.workloads)).unwrap();
            let now = self.pod(number, Generation::Second);
            changes.push(Change::Workload(Box::new(known_workload(&now, texts))));
            let gone = self.pod(number, Generation::First).uid;
            changes.push(Change::RemoveWorkload(Uid(gone.into())));
        }
        changes
    }
}

fn known_workload(pod: &Pod, texts: &mut Interner) -> Workload {
    let mut known = Workload::new(&pod.uid, &pod.name, "unused", "unused").unwrap();
    known.namespace = texts.get(&pod.namespace);
    known.trust_domain = texts.get("cluster.local");
    known.service_account = texts.get(&pod.account);
    known.identity = texts
        .identity("cluster.local", &pod.namespace, &pod.account)
        .unwrap();
    known.workload_ips = [pod.address.into()].into();
    known.network = texts.get("network-1");
    known.protocol = TunnelProtocol::Hbone;
    known.node = texts.get(&pod.node);
    known.canonical_name = texts.get(&pod.app);
    known.canonical_revision = texts.get("latest");
    known.workload_name = texts.get(&pod.app);
    let key = NamespacedHostname {
        namespace: texts.get(&pod.namespace),
        hostname: texts.get(&pod.hostname),
    };
    let ports = texts.ports(Ports::from([(80, 8080), (443, 8443)]));
    known.services = texts.services(vec![(key, ports)]);
    known.authorization_policies = texts.policies(["istio-system/istio_converted_static_strict"]);
    known.cluster_id = texts.get("Kubernetes");
    let locality = Locality {
        region: texts.get("eu-central-1"),
        zone: texts.get(&pod.zone),
        subzone: texts.get(""),
    };
    known.locality = texts.locality(locality);
    known
}

fn known_service(service: u32, texts: &mut Interner) -> Service {
    Service {
        name: texts.get(&app(service)),
        namespace: texts.get(&namespace(service)),
        hostname: texts.get(&hostname(service)),
        vips: vec![NetworkAddress {
            network: texts.get("network-1"),
            address: vip(service).into(),
        }],
        ports: Ports::from([(80, 8080), (443, 8443)]),
        ..Service::default()
    }
}
