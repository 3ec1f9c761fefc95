//! The small values of the two APIs: addresses, ranges, ports, gateways.

use std::fmt::Display;
use std::net::IpAddr;

use ipnet::IpNet;

use super::error::DecodeError;
use api::istio::workload as wire;
use mesh::{GatewayAddress, GatewayDestination, Interner, NamespacedHostname, NetworkAddress};

/// The port of HBONE, where a gateway names none.
const HBONE_PORT: u16 = 15008;
/// The most characters of a text from outside that a complaint repeats.
const SHOWN: usize = 256;

/// A field and what is wrong with it. The path is put together on the way out.
#[derive(Debug)]
pub(super) struct BadField {
    field: String,
    problem: String,
}

impl BadField {
    pub(super) fn new(problem: impl Display) -> Self {
        Self {
            field: String::new(),
            problem: problem.to_string(),
        }
    }

    /// The same, seen from one step further out.
    pub(super) fn at(mut self, step: impl Display) -> Self {
        let dot = if self.field.is_empty() { "" } else { "." };
        self.field = format!("{step}{dot}{}", self.field);
        self
    }

    /// The complaint about the whole resource.
    pub(super) fn of(self, kind: &'static str, name: &str) -> DecodeError {
        DecodeError::Field {
            kind,
            name: shown(name),
            field: self.field,
            problem: self.problem,
        }
    }
}

/// As much of a text as a complaint repeats.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

pub(super) fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// Four or sixteen bytes; an IPv4-mapped address is its IPv4 address.
pub(super) fn ip(bytes: &[u8]) -> Result<IpAddr, BadField> {
    raw_ip(bytes).map(|address| address.to_canonical())
}

fn raw_ip(bytes: &[u8]) -> Result<IpAddr, BadField> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(four.into());
    }
    <[u8; 16]>::try_from(bytes)
        .map(IpAddr::from)
        .map_err(|_other_length| {
            BadField::new(format_args!("{} bytes are no IP address", bytes.len()))
        })
}

/// A range without the bits that do not count. What is asked later is canonical, so a range of
/// IPv4-mapped addresses becomes one of IPv4 addresses.
pub(super) fn range(bytes: &[u8], length: u32) -> Result<IpNet, BadField> {
    let address = raw_ip(bytes)?;
    let refuse = || BadField::new(format_args!("{length} is no prefix length of {address}"));
    let length = u8::try_from(length).map_err(|_too_long| refuse())?;
    let range = IpNet::new(address, length).map_err(|_too_long| refuse())?;
    let mapped = match address.to_canonical() {
        IpAddr::V4(four) if address.is_ipv6() => length
            .checked_sub(96)
            .and_then(|length| IpNet::new(four.into(), length).ok()),
        _ => None,
    };
    Ok(mapped.unwrap_or(range).trunc())
}

/// A port, 1 to 65535.
pub(super) fn port(number: u32) -> Result<u16, BadField> {
    match port_or_zero(number)? {
        0 => Err(BadField::new("0 is no port")),
        port => Ok(port),
    }
}

/// A port or 0: a target port that is left open, a port of a policy, which may match nothing.
pub(super) fn port_or_zero(number: u32) -> Result<u16, BadField> {
    u16::try_from(number)
        .map_err(|_too_large| BadField::new(format_args!("{number} is no port, 65535 is the last")))
}

/// The key of a service.
pub(super) fn service_key(
    namespace: &str,
    hostname: &str,
    texts: &mut Interner,
) -> Result<NamespacedHostname, BadField> {
    if hostname.is_empty() || hostname.contains('/') {
        let found = shown(hostname);
        return Err(BadField::new(format_args!("{found:?} is not a host name")).at("hostname"));
    }
    if namespace.contains('/') {
        let found = shown(namespace);
        return Err(BadField::new(format_args!("{found:?} is not a namespace")).at("namespace"));
    }
    Ok(NamespacedHostname {
        namespace: texts.get(or(namespace, "default")),
        hostname: texts.get(hostname),
    })
}

/// A waypoint or an east-west gateway. One that cannot be read costs the whole resource: without
/// it, connections would go around whatever it enforces.
pub(super) fn gateway(
    gateway: &wire::GatewayAddress,
    texts: &mut Interner,
) -> Result<GatewayAddress, BadField> {
    use wire::gateway_address::Destination;
    let destination = match &gateway.destination {
        Some(Destination::Hostname(name)) => GatewayDestination::Hostname(
            service_key(&name.namespace, &name.hostname, texts)
                .map_err(|bad| bad.at("hostname"))?,
        ),
        Some(Destination::Address(address)) => GatewayDestination::Address(
            network_address(address, texts).map_err(|bad| bad.at("address"))?,
        ),
        None => return Err(BadField::new("no destination that is known here").at("destination")),
    };
    let hbone_mtls_port = match gateway.hbone_mtls_port {
        0 => HBONE_PORT,
        number => port(number).map_err(|bad| bad.at("hbone_mtls_port"))?,
    };
    Ok(GatewayAddress {
        destination,
        hbone_mtls_port,
    })
}

fn network_address(
    address: &wire::NetworkAddress,
    texts: &mut Interner,
) -> Result<NetworkAddress, BadField> {
    if is_range(address) {
        return Err(BadField::new("a range of addresses is no gateway").at("length"));
    }
    Ok(NetworkAddress {
        network: texts.get(&address.network),
        address: ip(&address.address).map_err(|bad| bad.at("address"))?,
    })
}

/// Whether it has a prefix length, and not that of a single address.
pub(super) fn is_range(address: &wire::NetworkAddress) -> bool {
    let bits = u32::try_from(address.address.len().saturating_mul(8)).unwrap_or(u32::MAX);
    address.length.is_some_and(|length| length != bits)
}
