//! A mesh of a size as a control plane tells it: pods of deployments, each deployment behind a
//! service of its own.

use std::net::Ipv4Addr;

use api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use api::istio::workload as wire;
use prost::Message as _;
use prost_types::Any;
use upstream::ads::ADDRESS_TYPE;

/// How large it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct World {
    pub(crate) workloads: u32,
    pub(crate) services: u32,
}

/// Whether a pod is one of the first, or came in the place of one of them.
#[derive(Debug, Clone, Copy)]
enum Generation {
    First,
    Second,
}

impl World {
    /// The first push, encoded: every service and every pod. It is put together piece by piece
    /// (messages of Protocol Buffers that are joined are one message), so that making it leaves no
    /// memory behind that the store would be given.
    pub(crate) fn first_push(self) -> Vec<u8> {
        let services = (0..self.services).map(service);
        let pods = (0..self.workloads).map(|number| self.pod(number, Generation::First));
        let each = (self.workloads as usize + self.services as usize) * 640;
        let mut push = Vec::with_capacity(each);
        for resource in services.chain(pods) {
            push.extend(response(vec![resource], Vec::new()).encode_to_vec());
        }
        push
    }

    /// The push that replaces one pod by another one.
    pub(crate) fn replacement(self, number: u32) -> DeltaDiscoveryResponse {
        // Far apart, so that those that come together are behind different services.
        let number = (number % self.workloads).wrapping_mul(7919) % self.workloads;
        let gone = self.pod(number, Generation::First).name;
        response(vec![self.pod(number, Generation::Second)], vec![gone])
    }

    /// Where the pod that comes with a replacement is.
    pub(crate) fn address_after(self, number: u32) -> Ipv4Addr {
        let number = (number % self.workloads).wrapping_mul(7919) % self.workloads;
        address(number, Generation::Second)
    }

    fn pod(self, number: u32, generation: Generation) -> Resource {
        let service = number % self.services;
        let (namespace, app) = (namespace(service), app(service));
        let suffix = match generation {
            Generation::First => "ab",
            Generation::Second => "cd",
        };
        let name = format!("{app}-{service:08x}-{number:x}{suffix}");
        let uid = format!("Kubernetes//Pod/{namespace}/{name}");
        let (node, ports) = (number % 1000, ports());
        let key = format!("{namespace}/{}", hostname(service));
        let workload = wire::Workload {
            uid: uid.clone(),
            name,
            addresses: vec![address(number, generation).octets().to_vec().into()],
            network: "network-1".to_owned(),
            tunnel_protocol: wire::TunnelProtocol::Hbone as i32,
            service_account: format!("{app}-account"),
            node: format!(
                "ip-10-0-{}-{}.eu-central-1.compute.internal",
                node / 250,
                node % 250
            ),
            canonical_name: app.clone(),
            canonical_revision: "latest".to_owned(),
            workload_name: app,
            services: [(key, wire::PortList { ports })].into(),
            authorization_policies: vec!["istio-system/istio_converted_static_strict".to_owned()],
            cluster_id: "Kubernetes".to_owned(),
            locality: Some(wire::Locality {
                region: "eu-central-1".to_owned(),
                zone: format!("eu-central-1-{}", number % 3),
                subzone: String::new(),
            }),
            namespace,
            ..wire::Workload::default()
        };
        resource(uid, wire::address::Type::Workload(workload))
    }
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

fn address(number: u32, generation: Generation) -> Ipv4Addr {
    let network: u32 = match generation {
        Generation::First => 10,
        Generation::Second => 11,
    };
    Ipv4Addr::from((network << 24) + number)
}

fn ports() -> Vec<wire::Port> {
    [(80, 8080), (443, 8443)]
        .map(|(service_port, target_port)| wire::Port {
            service_port,
            target_port,
            app_protocol: 0,
        })
        .to_vec()
}

fn service(number: u32) -> Resource {
    let vip = Ipv4Addr::from((172 << 24) + number);
    let service = wire::Service {
        name: app(number),
        namespace: namespace(number),
        hostname: hostname(number),
        addresses: vec![wire::NetworkAddress {
            network: "network-1".to_owned(),
            address: vip.octets().to_vec().into(),
            length: None,
        }],
        ports: ports(),
        ..wire::Service::default()
    };
    let name = format!("{}/{}", service.namespace, service.hostname);
    resource(name, wire::address::Type::Service(service))
}

fn resource(name: String, content: wire::address::Type) -> Resource {
    let address = wire::Address {
        r#type: Some(content),
    };
    Resource {
        name,
        resource: Some(Any {
            type_url: ADDRESS_TYPE.to_owned(),
            value: address.encode_to_vec(),
        }),
        ..Resource::default()
    }
}

fn response(resources: Vec<Resource>, removed: Vec<String>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE.to_owned(),
        resources,
        removed_resources: removed,
        ..DeltaDiscoveryResponse::default()
    }
}
