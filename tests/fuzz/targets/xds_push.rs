//! A series of responses with valid and invalid resources. After each response the snapshot
//! contains what a simple model contains: the last valid resource of each name.
#![no_main]

use std::collections::BTreeMap;

use api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use api::istio::workload as wire;
use arbitrary::{Arbitrary, Result, Unstructured};
use mesh::{Change, Interner};
use prost::Message as _;
use prost_types::Any;
use upstream::ads::decode::decode_address;
use upstream::ads::{ADDRESS_TYPE, AUTHORIZATION_TYPE, OfflineClient};
use ztunnel_fuzz::fuzz_target;
use ztunnel_fuzz::world::{NAMES, one_of};

/// A resource of a response, or the name of a removed one.
#[derive(Debug, Arbitrary)]
enum Piece<'a> {
    Workload(Workload),
    Service(Service),
    Invalid(Named, &'a [u8]),
    Empty(Named),
    OtherType(Named),
    Removed(Named),
}

/// A resource name, `a/b`.
#[derive(Debug, Clone)]
struct Named(String);

#[derive(Debug)]
struct Workload {
    name: Named,
    address: u8,
    service: Option<Named>,
}

#[derive(Debug)]
struct Service {
    name: Named,
    address: u8,
}

impl<'a> Arbitrary<'a> for Named {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        let (a, b) = (one_of(input, &NAMES)?, one_of(input, &NAMES)?);
        Ok(Self(format!("{a}/{b}")))
    }
}

impl<'a> Arbitrary<'a> for Workload {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self {
            name: input.arbitrary()?,
            address: input.int_in_range(0..=7)?,
            service: input.arbitrary()?,
        })
    }
}

impl<'a> Arbitrary<'a> for Service {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self {
            name: input.arbitrary()?,
            address: input.int_in_range(0..=7)?,
        })
    }
}

/// The kind of resource with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Workload,
    Service,
}

type Model = BTreeMap<String, Kind>;

fuzz_target!(|pushes: Vec<Vec<Piece<'_>>>| {
    ztunnel_fuzz::block_on(async {
        let mut client = OfflineClient::new("td");
        let mut model = Model::new();
        for push in &pushes {
            let response = response(push);
            let bad = update_model(&response, push, &mut model);
            let refused = client.apply(response).await;
            assert_eq!(refused, Some(bad), "{push:?}");
            compare(&client, &model, push);
        }
        // A response of the other type changes no workload and no service.
        let other = DeltaDiscoveryResponse {
            type_url: AUTHORIZATION_TYPE.to_owned(),
            ..DeltaDiscoveryResponse::default()
        };
        assert_eq!(client.apply(other).await, Some(0));
        let everything = DeltaDiscoveryResponse {
            type_url: ADDRESS_TYPE.to_owned(),
            removed_resources: model.keys().cloned().collect(),
            ..DeltaDiscoveryResponse::default()
        };
        assert_eq!(client.apply(everything).await, Some(0));
        compare(&client, &Model::new(), &[]);
    });
});

fn response(push: &[Piece<'_>]) -> DeltaDiscoveryResponse {
    let mut response = DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE.to_owned(),
        ..DeltaDiscoveryResponse::default()
    };
    for piece in push {
        match piece {
            Piece::Removed(name) => response.removed_resources.push(name.0.clone()),
            other => response.resources.push(resource(other)),
        }
    }
    response
}

fn resource(piece: &Piece<'_>) -> Resource {
    let any = |value: Vec<u8>| Any {
        type_url: ADDRESS_TYPE.to_owned(),
        value: value.into(),
    };
    let (name, content) = match piece {
        Piece::Workload(workload) => (&workload.name, Some(any(of_workload(workload)))),
        Piece::Service(service) => (&service.name, Some(any(of_service(service)))),
        Piece::Invalid(name, bytes) => (name, Some(any(bytes.to_vec()))),
        Piece::OtherType(name) => {
            let mut content = any(Vec::new());
            content.type_url = AUTHORIZATION_TYPE.to_owned();
            (name, Some(content))
        }
        Piece::Empty(name) | Piece::Removed(name) => (name, None),
    };
    Resource {
        name: name.0.clone(),
        resource: content,
        ..Resource::default()
    }
}

fn of_workload(workload: &Workload) -> Vec<u8> {
    let port = wire::Port {
        service_port: 80,
        target_port: 8080,
        ..wire::Port::default()
    };
    let services = workload.service.iter();
    let wire = wire::Workload {
        uid: workload.name.0.clone(),
        name: "w".to_owned(),
        namespace: "a".to_owned(),
        addresses: vec![vec![10, 0, 0, workload.address].into()],
        services: services
            .map(|name| {
                (
                    name.0.clone(),
                    wire::PortList {
                        ports: vec![port.clone()],
                    },
                )
            })
            .collect(),
        ..wire::Workload::default()
    };
    encoded(wire::address::Type::Workload(wire))
}

fn of_service(service: &Service) -> Vec<u8> {
    let (namespace, hostname) = service.name.0.split_once('/').unwrap();
    let wire = wire::Service {
        name: "s".to_owned(),
        namespace: namespace.to_owned(),
        hostname: hostname.to_owned(),
        addresses: vec![wire::NetworkAddress {
            address: vec![10, 1, 0, service.address].into(),
            ..wire::NetworkAddress::default()
        }],
        ..wire::Service::default()
    };
    encoded(wire::address::Type::Service(wire))
}

fn encoded(content: wire::address::Type) -> Vec<u8> {
    wire::Address {
        r#type: Some(content),
    }
    .encode_to_vec()
}

/// Applies the removals and then the resources in their order. Returns how many must be refused.
fn update_model(response: &DeltaDiscoveryResponse, push: &[Piece<'_>], model: &mut Model) -> usize {
    for name in &response.removed_resources {
        model.remove(name);
    }
    let mut bad = 0;
    for piece in push {
        match piece {
            Piece::Workload(workload) => {
                model.insert(workload.name.0.clone(), Kind::Workload);
            }
            Piece::Service(service) => {
                model.insert(service.name.0.clone(), Kind::Service);
            }
            Piece::Invalid(name, bytes) => match kind_of(&name.0, bytes) {
                Some(kind) => {
                    model.insert(name.0.clone(), kind);
                }
                None => bad += 1,
            },
            Piece::Empty(_) | Piece::OtherType(_) => bad += 1,
            Piece::Removed(_) => {}
        }
    }
    bad
}

/// The kind of resource if arbitrary bytes happen to be a valid one of this name.
fn kind_of(name: &str, bytes: &[u8]) -> Option<Kind> {
    let change = decode_address(bytes, "td", &mut Interner::new()).ok()?;
    match change {
        Change::Workload(workload) => (*workload.uid.0 == *name).then_some(Kind::Workload),
        Change::Service(service) => (service.key().to_string() == name).then_some(Kind::Service),
        _ => None,
    }
}

fn compare(client: &OfflineClient, model: &Model, push: &[Piece<'_>]) {
    let workloads = client.mesh.workloads();
    let services = client.mesh.services();
    let mut found: Vec<_> = workloads
        .map(|workload| (workload.uid.to_string(), Kind::Workload))
        .chain(services.map(|service| (service.key().to_string(), Kind::Service)))
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let expected: Vec<_> = model
        .iter()
        .map(|(name, kind)| (name.clone(), *kind))
        .collect();
    assert_eq!(found, expected, "after {push:?}");
    // Every backend of a service is in the snapshot and lists the service.
    for entry in client.mesh.entries() {
        for endpoint in &entry.endpoints {
            let services = endpoint.workload.services.iter();
            assert!(services.clone().any(|(key, _)| *key == entry.service.key()));
            assert!(
                client
                    .mesh
                    .workload_by_uid(&endpoint.workload.uid)
                    .is_some()
            );
        }
    }
}
