//! Decodes the common values of the two APIs: addresses, ranges, ports, gateways.

use std::fmt::Display;
use std::net::IpAddr;

use ipnet::IpNet;

use super::error::DecodeError;
use api::istio::workload as wire;
use mesh::{GatewayAddress, GatewayDestination, Interner, NamespacedHostname, NetworkAddress};

/// The port of HBONE for a gateway that sets none.
const HBONE_PORT: u16 = 15008;
/// The largest number of characters of a received text in an error message.
const TEXT_MAX: usize = 256;

/// An invalid field. Each caller adds its part of the field's path with [`FieldError::at`].
#[derive(Debug)]
pub(super) struct FieldError {
    field: String,
    problem: String,
}

impl FieldError {
    pub(super) fn new(problem: impl Display) -> Self {
        Self {
            field: String::new(),
            problem: problem.to_string(),
        }
    }

    /// Prepends a step to the path of the field.
    pub(super) fn at(mut self, step: impl Display) -> Self {
        let dot = if self.field.is_empty() { "" } else { "." };
        self.field = format!("{step}{dot}{}", self.field);
        self
    }

    /// The error for the resource that contains the field.
    pub(super) fn in_resource(self, kind: &'static str, name: &str) -> DecodeError {
        DecodeError::Field {
            kind,
            name: truncated(name),
            field: self.field,
            problem: self.problem,
        }
    }
}

/// Truncates a received text for an error message.
pub(super) fn truncated(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

/// A text, or the default if the text is empty.
pub(super) fn or_default<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

/// An address of 4 or 16 bytes. An IPv4-mapped address becomes an IPv4 address.
pub(super) fn ip(bytes: &[u8]) -> Result<IpAddr, FieldError> {
    raw_ip(bytes).map(|address| address.to_canonical())
}

fn raw_ip(bytes: &[u8]) -> Result<IpAddr, FieldError> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(four.into());
    }
    <[u8; 16]>::try_from(bytes)
        .map(IpAddr::from)
        .map_err(|_other_length| {
            FieldError::new(format_args!(
                "{} bytes are not an IP address, expected 4 or 16",
                bytes.len()
            ))
        })
}

/// A range with its host bits cleared. A range of IPv4-mapped addresses becomes a range of IPv4
/// addresses, because addresses are canonical when they are compared with it.
pub(super) fn range(bytes: &[u8], length: u32) -> Result<IpNet, FieldError> {
    let address = raw_ip(bytes)?;
    let refuse = || FieldError::new(format_args!("{length} is not a prefix length of {address}"));
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
pub(super) fn port(number: u32) -> Result<u16, FieldError> {
    match port_or_zero(number)? {
        0 => Err(FieldError::new("0 is not a port")),
        port => Ok(port),
    }
}

/// A port or 0. As a target port, 0 means that each backend sets its own; in a policy, it matches
/// nothing.
pub(super) fn port_or_zero(number: u32) -> Result<u16, FieldError> {
    u16::try_from(number).map_err(|_too_large| {
        FieldError::new(format_args!(
            "{number} is not a port, expected at most 65535"
        ))
    })
}

/// The key of a service.
pub(super) fn service_key(
    namespace: &str,
    hostname: &str,
    texts: &mut Interner,
) -> Result<NamespacedHostname, FieldError> {
    if hostname.is_empty() || hostname.contains('/') {
        let found = truncated(hostname);
        return Err(FieldError::new(format_args!("{found:?} is not a host name")).at("hostname"));
    }
    if namespace.contains('/') {
        let found = truncated(namespace);
        return Err(FieldError::new(format_args!("{found:?} is not a namespace")).at("namespace"));
    }
    Ok(NamespacedHostname {
        namespace: texts.get(or_default(namespace, "default")),
        hostname: texts.get(hostname),
    })
}

/// A waypoint or a network gateway. An invalid one refuses the whole resource: without it,
/// connections would bypass the policies that it enforces.
pub(super) fn gateway(
    gateway: &wire::GatewayAddress,
    texts: &mut Interner,
) -> Result<GatewayAddress, FieldError> {
    use wire::gateway_address::Destination;
    let destination = match &gateway.destination {
        Some(Destination::Hostname(name)) => GatewayDestination::Hostname(
            service_key(&name.namespace, &name.hostname, texts)
                .map_err(|error| error.at("hostname"))?,
        ),
        Some(Destination::Address(address)) => GatewayDestination::Address(
            network_address(address, texts).map_err(|error| error.at("address"))?,
        ),
        None => return Err(FieldError::new("missing or of an unknown kind").at("destination")),
    };
    let hbone_mtls_port = match gateway.hbone_mtls_port {
        0 => HBONE_PORT,
        number => port(number).map_err(|error| error.at("hbone_mtls_port"))?,
    };
    Ok(GatewayAddress {
        destination,
        hbone_mtls_port,
    })
}

fn network_address(
    address: &wire::NetworkAddress,
    texts: &mut Interner,
) -> Result<NetworkAddress, FieldError> {
    if is_range(address) {
        return Err(
            FieldError::new("a gateway must be a single address, not a range").at("length"),
        );
    }
    Ok(NetworkAddress {
        network: texts.get(&address.network),
        address: ip(&address.address).map_err(|error| error.at("address"))?,
    })
}

/// Whether the prefix length is shorter than the address.
pub(super) fn is_range(address: &wire::NetworkAddress) -> bool {
    let bits = u32::try_from(address.address.len().saturating_mul(8)).unwrap_or(u32::MAX);
    address.length.is_some_and(|length| length != bits)
}
