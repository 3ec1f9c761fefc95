//! Decoding of every field of the two APIs, of unknown enum values and of invalid values.

mod policies;
mod unknown_fields;

use std::collections::HashMap;

use proptest::prelude::*;
use prost::Message as _;

use std::sync::Arc;

use super::*;
use api::istio::workload as wire;
use mesh::{
    ApplicationTunnel, GatewayAddress, GatewayDestination, HealthPolicy, HealthStatus, Identity,
    IpFamilies, LoadBalancing, LoadBalancingMode, Locality, NamespacedHostname, NetworkAddress,
    NetworkMode, NetworkRange, RoutingScope, Service, TunnelProtocol, Uid, Visibility,
    WeightedWaypoint, Workload, WorkloadType,
};

fn text(text: &str) -> String {
    text.to_owned()
}

fn decode(kind: address::Type) -> Result<Change, DecodeError> {
    let bytes = Address { r#type: Some(kind) }.encode_to_vec();
    decode_address(&bytes, "mesh.example", &mut Interner::new())
}

fn workload(wire: wire::Workload) -> Result<Workload, String> {
    match decode(address::Type::Workload(wire)) {
        Ok(Change::Workload(workload)) => Ok(*workload),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

fn service(wire: wire::Service) -> Result<Service, String> {
    match decode(address::Type::Service(wire)) {
        Ok(Change::Service(service)) => Ok(*service),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

/// A workload with only the required field.
fn bare() -> wire::Workload {
    wire::Workload {
        uid: text("c//v1/Pod/ns/a"),
        ..wire::Workload::default()
    }
}

fn bare_service() -> wire::Service {
    wire::Service {
        hostname: text("b.example"),
        ..wire::Service::default()
    }
}

fn host(namespace: &str, hostname: &str, port: u32) -> wire::GatewayAddress {
    wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Hostname(
            wire::NamespacedHostname {
                namespace: text(namespace),
                hostname: text(hostname),
            },
        )),
        hbone_mtls_port: port,
    }
}

fn network(network: &str, address: &[u8], length: Option<u32>) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: text(network),
        address: address.to_vec().into(),
        length,
    }
}

fn at(address: wire::NetworkAddress, port: u32) -> wire::GatewayAddress {
    wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Address(address)),
        hbone_mtls_port: port,
    }
}

fn key(namespace: &str, hostname: &str) -> NamespacedHostname {
    NamespacedHostname {
        namespace: namespace.into(),
        hostname: hostname.into(),
    }
}

fn port(service_port: u32, target_port: u32) -> wire::Port {
    wire::Port {
        service_port,
        target_port,
        app_protocol: 99,
    }
}

const MAPPED: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 7];
const SIX: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn full_workload() -> wire::Workload {
    wire::Workload {
        uid: text("c//v1/Pod/ns/a"),
        name: text("a"),
        namespace: text("ns"),
        addresses: vec![
            vec![10, 0, 0, 1].into(),
            SIX.to_vec().into(),
            MAPPED.to_vec().into(),
        ],
        hostname: text("a.example"),
        network: text("net"),
        tunnel_protocol: 1,
        trust_domain: text("td.example"),
        service_account: text("sa"),
        waypoint: Some(host("infra", "way.example", 15009)),
        network_gateway: Some(at(network("net2", &[1, 2, 3, 4], None), 0)),
        node: text("node-a"),
        canonical_name: text("app"),
        canonical_revision: text("v1"),
        workload_type: 3,
        workload_name: text("a-job"),
        native_tunnel: true,
        application_tunnel: Some(wire::ApplicationTunnel {
            protocol: 1,
            port: 8080,
        }),
        services: HashMap::from([
            (
                text("ns/z.example"),
                wire::PortList {
                    ports: vec![port(80, 8080), port(81, 0)],
                },
            ),
            (text("/a.example"), wire::PortList::default()),
        ]),
        // The first policy is listed twice.
        authorization_policies: vec![text("ns/p1"), text("ns/p2"), text("ns/p1")],
        status: 1,
        cluster_id: text("c"),
        locality: Some(wire::Locality {
            region: text("r"),
            zone: text("z"),
            subzone: text("s"),
        }),
        network_mode: 1,
        extensions: vec![wire::Extension::default()],
        capacity: Some(7),
    }
}

#[test]
fn every_field_of_a_workload_arrives() {
    let expected = Workload {
        uid: Uid("c//v1/Pod/ns/a".into()),
        name: "a".into(),
        namespace: "ns".into(),
        trust_domain: "td.example".into(),
        service_account: "sa".into(),
        identity: Identity::new("td.example", "ns", "sa").unwrap(),
        workload_ips: ["10.0.0.1", "fd00::1", "10.0.0.7"]
            .map(|ip| ip.parse().unwrap())
            .into(),
        hostname: "a.example".into(),
        network: "net".into(),
        protocol: TunnelProtocol::Hbone,
        waypoint: Some(Arc::new(GatewayAddress {
            destination: GatewayDestination::Hostname(key("infra", "way.example")),
            hbone_mtls_port: 15009,
        })),
        network_gateway: Some(Arc::new(GatewayAddress {
            destination: GatewayDestination::Address(NetworkAddress {
                network: "net2".into(),
                address: "1.2.3.4".parse().unwrap(),
            }),
            hbone_mtls_port: 15008,
        })),
        node: "node-a".into(),
        canonical_name: "app".into(),
        canonical_revision: "v1".into(),
        workload_type: WorkloadType::Job,
        workload_name: "a-job".into(),
        native_tunnel: true,
        application_tunnel: Some(ApplicationTunnel {
            proxy_protocol: true,
            port: Some(8080),
        }),
        services: Arc::new([
            (key("default", "a.example"), Arc::new([].into())),
            (key("ns", "z.example"), Arc::new([(80, 8080)].into())),
        ]),
        authorization_policies: Arc::new(["ns/p1".into(), "ns/p2".into()]),
        status: HealthStatus::Unhealthy,
        cluster_id: "c".into(),
        locality: Arc::new(Locality {
            region: "r".into(),
            zone: "z".into(),
            subzone: "s".into(),
        }),
        network_mode: NetworkMode::HostNetwork,
        capacity: 7,
    };
    assert_eq!(workload(full_workload()), Ok(expected));
}

#[test]
fn missing_fields_of_a_workload_have_the_defaults_of_the_api() {
    let mut expected = Workload::new("c//v1/Pod/ns/a", "", "default", "default").unwrap();
    expected.trust_domain = "mesh.example".into();
    expected.identity = Identity::new("mesh.example", "default", "default").unwrap();
    assert_eq!(workload(bare()), Ok(expected));
}

#[test]
fn a_capacity_of_zero_is_not_a_missing_one() {
    let wire = wire::Workload {
        capacity: Some(0),
        ..bare()
    };
    assert_eq!(workload(wire).unwrap().capacity, 0);
}

#[test]
fn unknown_enum_values_become_the_safest_known_value() {
    let newer = workload(wire::Workload {
        tunnel_protocol: 9,
        workload_type: 9,
        status: 9,
        network_mode: 9,
        application_tunnel: Some(wire::ApplicationTunnel {
            protocol: 9,
            port: 0,
        }),
        ..bare()
    })
    .unwrap();
    assert_eq!(newer.protocol, TunnelProtocol::Hbone);
    assert_eq!(newer.workload_type, WorkloadType::Deployment);
    assert_eq!(newer.status, HealthStatus::Unhealthy);
    assert_eq!(newer.network_mode, NetworkMode::Standard);
    let tunnel = newer.application_tunnel.unwrap();
    assert_eq!((tunnel.proxy_protocol, tunnel.port), (true, None));
    let newer = service(wire::Service {
        ip_families: 9,
        visibility: 9,
        load_balancing: Some(wire::LoadBalancing {
            routing_preference: vec![9, 2, 0],
            mode: 9,
            health_policy: 9,
        }),
        ..bare_service()
    })
    .unwrap();
    assert_eq!(newer.ip_families, IpFamilies::Automatic);
    assert_eq!(newer.visibility, Visibility::Public);
    let expected = LoadBalancing {
        routing_preferences: vec![RoutingScope::Zone],
        mode: LoadBalancingMode::Standard,
        health_policy: HealthPolicy::OnlyHealthy,
    };
    assert_eq!(newer.load_balancing, Some(expected));
}

#[test]
fn the_enum_values_have_the_numbers_of_the_api() {
    for (number, protocol) in [
        (0, TunnelProtocol::Tcp),
        (1, TunnelProtocol::Hbone),
        (2, TunnelProtocol::Tcp),
    ] {
        let wire = wire::Workload {
            tunnel_protocol: number,
            ..bare()
        };
        assert_eq!(workload(wire).unwrap().protocol, protocol, "{number}");
    }
    for (number, kind) in [
        (0, WorkloadType::Deployment),
        (1, WorkloadType::CronJob),
        (2, WorkloadType::Pod),
        (3, WorkloadType::Job),
    ] {
        let wire = wire::Workload {
            workload_type: number,
            ..bare()
        };
        assert_eq!(workload(wire).unwrap().workload_type, kind, "{number}");
    }
    for (number, families) in [
        (0, IpFamilies::Automatic),
        (1, IpFamilies::Ipv4Only),
        (2, IpFamilies::Ipv6Only),
        (3, IpFamilies::Dual),
    ] {
        let wire = wire::Service {
            ip_families: number,
            ..bare_service()
        };
        assert_eq!(service(wire).unwrap().ip_families, families, "{number}");
    }
    for (number, mode) in [
        (0, LoadBalancingMode::Standard),
        (1, LoadBalancingMode::Strict),
        (2, LoadBalancingMode::Failover),
        (3, LoadBalancingMode::Passthrough),
    ] {
        let wire = wire::Service {
            load_balancing: Some(wire::LoadBalancing {
                routing_preference: vec![1, 2, 3, 4, 5, 6],
                mode: number,
                health_policy: 1,
            }),
            ..bare_service()
        };
        use RoutingScope::{Cluster, Network, Node, Region, Subzone, Zone};
        let balancing = service(wire).unwrap().load_balancing.unwrap();
        assert_eq!(balancing.mode, mode, "{number}");
        assert_eq!(balancing.health_policy, HealthPolicy::AllowAll);
        assert_eq!(
            balancing.routing_preferences,
            [Region, Zone, Subzone, Node, Cluster, Network]
        );
    }
}

fn full_service() -> wire::Service {
    wire::Service {
        name: text("b"),
        namespace: text("ns"),
        hostname: text("b.example"),
        addresses: vec![
            network("net", &[10, 1, 0, 1], None),
            network("", &MAPPED, Some(128)),
            network("net", &[10, 2, 3, 4], Some(16)),
            network("net", &SIX, Some(64)),
            network("", &MAPPED, Some(120)),
        ],
        ports: vec![port(80, 8080), port(443, 0)],
        subject_alt_names: vec![text("spiffe://td/ns/a/sa/b")],
        waypoint: Some(host("", "way.example", 0)),
        load_balancing: None,
        ip_families: 3,
        extensions: vec![wire::Extension::default()],
        canonical: true,
        ingress_use_waypoint: true,
        weighted_waypoints: vec![wire::WeightedWaypoint {
            destination: Some(at(network("", &SIX, Some(128)), 1)),
            weight: 3,
        }],
        visibility: 1,
    }
}

#[test]
fn every_field_of_a_service_arrives() {
    let range = |network: &str, range: &str| NetworkRange {
        network: network.into(),
        range: range.parse().unwrap(),
    };
    let address = |network: &str, address: &str| NetworkAddress {
        network: network.into(),
        address: address.parse().unwrap(),
    };
    let expected = Service {
        name: "b".into(),
        namespace: "ns".into(),
        hostname: "b.example".into(),
        vips: vec![address("net", "10.1.0.1"), address("", "10.0.0.7")],
        ranges: vec![
            range("net", "10.2.0.0/16"),
            range("net", "fd00::/64"),
            range("", "10.0.0.0/24"),
        ],
        ports: [(80, 8080), (443, 0)].into(),
        subject_alt_names: vec!["spiffe://td/ns/a/sa/b".into()],
        waypoint: Some(GatewayAddress {
            destination: GatewayDestination::Hostname(key("default", "way.example")),
            hbone_mtls_port: 15008,
        }),
        weighted_waypoints: vec![WeightedWaypoint {
            destination: GatewayAddress {
                destination: GatewayDestination::Address(address("", "fd00::1")),
                hbone_mtls_port: 1,
            },
            weight: 3,
        }],
        ingress_use_waypoint: true,
        load_balancing: None,
        ip_families: IpFamilies::Dual,
        canonical: true,
        visibility: Visibility::Namespace,
    };
    assert_eq!(service(full_service()), Ok(expected));
    let expected = Service {
        namespace: "default".into(),
        hostname: "b.example".into(),
        ..Service::default()
    };
    assert_eq!(service(bare_service()), Ok(expected));
}

fn decode_changed(change: impl FnOnce(&mut wire::Workload)) -> Result<Workload, String> {
    let mut wire = bare();
    change(&mut wire);
    workload(wire)
}

#[test]
fn the_error_names_the_invalid_field_of_a_workload() {
    let services =
        |key: &str, ports: Vec<wire::Port>| HashMap::from([(text(key), wire::PortList { ports })]);
    type Change = Box<dyn FnOnce(&mut wire::Workload)>;
    let cases: [(Change, &str); 11] = [
        (
            Box::new(|w| w.uid.clear()),
            "workload : uid: must not be empty",
        ),
        (
            Box::new(|w| w.addresses = vec![vec![1, 2, 3, 4].into(), vec![0; 5].into()]),
            "workload c//v1/Pod/ns/a: addresses[1]: 5 bytes are not an IP address, expected 4 or 16",
        ),
        (
            Box::new(|w| w.waypoint = Some(host("a", "", 0))),
            "waypoint.hostname.hostname: \"\" is not a host name",
        ),
        (
            Box::new(|w| w.waypoint = Some(host("a", "b", 65536))),
            "waypoint.hbone_mtls_port: 65536 is not a port, expected at most 65535",
        ),
        (
            Box::new(|w| w.network_gateway = Some(wire::GatewayAddress::default())),
            "network_gateway.destination: missing or of an unknown kind",
        ),
        (
            Box::new(|w| w.waypoint = Some(at(network("", &[1, 2, 3, 4], Some(8)), 0))),
            "waypoint.address.length: a gateway must be a single address, not a range",
        ),
        (
            Box::new(|w| {
                w.application_tunnel = Some(wire::ApplicationTunnel {
                    protocol: 0,
                    port: 70000,
                });
            }),
            "application_tunnel.port: 70000 is not a port, expected at most 65535",
        ),
        (
            Box::new(move |w| w.services = services("nowhere", vec![])),
            "services[\"nowhere\"]: the key is not namespace/hostname",
        ),
        (
            Box::new(move |w| w.services = services("a/b", vec![port(80, 1), port(0, 1)])),
            "services[\"a/b\"].ports[1].service_port: 0 is not a port",
        ),
        (
            Box::new(move |w| w.services = services("a/b/c", vec![])),
            "services[\"a/b/c\"].hostname: \"b/c\" is not a host name",
        ),
        (
            Box::new(|w| w.service_account = text("a/b")),
            "service_account: \"spiffe://mesh.example/ns/default/sa/a/b\" is not a workload identity",
        ),
    ];
    for (change, expected) in cases {
        let error = decode_changed(change).expect_err(expected);
        assert!(error.contains(expected), "{error}\nexpected: {expected}");
    }
}

#[test]
fn the_error_names_the_invalid_field_of_a_service() {
    let error_of = |wire| service(wire).expect_err("the service must be refused");
    assert_eq!(
        error_of(wire::Service {
            namespace: text("ns"),
            ..wire::Service::default()
        }),
        "service ns/: hostname: \"\" is not a host name"
    );
    for (addresses, expected) in [
        (
            network("", &[1, 2, 3], None),
            "3 bytes are not an IP address, expected 4 or 16",
        ),
        (
            network("", &[], Some(0)),
            "0 bytes are not an IP address, expected 4 or 16",
        ),
        (
            network("", &[1, 2, 3, 4], Some(33)),
            "33 is not a prefix length of 1.2.3.4",
        ),
        (
            network("", &[1, 2, 3, 4], Some(u32::MAX)),
            "4294967295 is not a prefix length of 1.2.3.4",
        ),
    ] {
        let addresses = vec![addresses];
        let error = error_of(wire::Service {
            addresses,
            ..bare_service()
        });
        assert_eq!(
            error,
            format!("service /b.example: addresses[0]: {expected}")
        );
    }
    let error = error_of(wire::Service {
        weighted_waypoints: vec![wire::WeightedWaypoint::default()],
        ..bare_service()
    });
    assert!(
        error.ends_with("weighted_waypoints[0].destination: missing"),
        "{error}"
    );
    let error = error_of(wire::Service {
        ports: vec![port(80, 65536)],
        ..bare_service()
    });
    assert!(error.contains("ports[0].target_port: 65536"), "{error}");
}

#[test]
fn an_address_of_an_unknown_kind_is_refused() {
    let mut texts = Interner::new();
    assert_eq!(
        decode_address(&[], "td", &mut texts),
        Err(DecodeError::Empty)
    );
    // A kind of a newer API: field 3.
    assert_eq!(
        decode_address(&[0x1a, 0], "td", &mut texts),
        Err(DecodeError::Empty)
    );
    let error =
        decode_address(&[0x0a, 200], "td", &mut texts).expect_err("the bytes are truncated");
    assert_eq!(
        (error.reason(), error.fault().as_str()),
        ("malformed", "mesh")
    );
}

#[test]
fn an_error_truncates_long_names() {
    let error = workload(wire::Workload {
        uid: "é".repeat(100_000),
        addresses: vec![vec![0; 5].into()],
        ..wire::Workload::default()
    });
    assert!(
        error
            .expect_err("the workload must be refused")
            .chars()
            .count()
            < 400
    );
}

#[test]
fn equal_texts_share_one_allocation() {
    let mut texts = Interner::new();
    let bytes = Address {
        r#type: Some(address::Type::Workload(full_workload())),
    }
    .encode_to_vec();
    let mut decode = || match decode_address(&bytes, "td", &mut texts) {
        Ok(Change::Workload(workload)) => workload.namespace,
        other => panic!("{other:?}"),
    };
    assert!(Arc::ptr_eq(&decode(), &decode()));
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut texts = Interner::new();
        drop(decode_address(&bytes, "td", &mut texts));
        drop(decode_authorization(&bytes, &mut texts));
    }

    #[test]
    fn a_corrupted_workload_does_not_panic(
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<proptest::sample::Index>(),
    ) {
        let kind = Some(address::Type::Workload(full_workload()));
        let mut bytes = Address { r#type: kind }.encode_to_vec();
        let position = at.index(bytes.len());
        bytes[position] = byte;
        bytes.truncate(cut.index(bytes.len() + 1));
        drop(decode_address(&bytes, "td", &mut Interner::new()));
    }
}
