//! Scalar values of the local file: ports, addresses, names of a closed set.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

use crate::{Interner, NamespacedHostname, yaml};

/// A port, 1 to 65535, written as a number or a string (a key may be quoted).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port(pub(super) u16);

/// A target port: a port, or 0 to leave it to each backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TargetPort(pub(super) u16);

struct PortVisitor {
    least: u16,
}

impl Visitor<'_> for PortVisitor {
    type Value = u16;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a port, {} to 65535", self.least)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<u16, E> {
        u16::try_from(number)
            .ok()
            .filter(|port| *port >= self.least)
            .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<u16, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_negative) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u16, E> {
        match text.parse() {
            Ok(number) => self.visit_u64(number),
            Err(_no_number) => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(PortVisitor { least: 1 })
            .map(Self)
    }
}

impl<'de> Deserialize<'de> for TargetPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(PortVisitor { least: 0 })
            .map(Self)
    }
}

/// Reads a string and parses it.
fn parsed<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, D::Error> {
    yaml::parsed(deserializer, expected, |text| {
        parse(text).ok_or_else(|| format!("{text:?} is not {expected}"))
    })
}

/// An IP address; an IPv4-mapped address becomes its IPv4 address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address(pub(super) IpAddr);

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, "an IP address", |text| {
            IpAddr::from_str(text).ok()
        })
        .map(|address| Self(address.to_canonical()))
    }
}

/// `network/address`; the network may be empty, the slash is required.
#[derive(Debug, Clone)]
pub(super) struct Vip {
    pub(super) network: String,
    pub(super) address: IpAddr,
}

impl Vip {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (network, address) = text.split_once('/')?;
        let address = IpAddr::from_str(address).ok()?.to_canonical();
        Some(Self {
            network: network.to_owned(),
            address,
        })
    }
}

impl<'de> Deserialize<'de> for Vip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(
            deserializer,
            "network/address (\"/10.1.0.1\" in the default network)",
            Self::parse,
        )
    }
}

/// An address range, or an address as a range of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range(pub(super) IpNet);

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "an address range such as 10.0.0.0/8 or an address";
        parsed(deserializer, expected, Self::parse)
    }
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = IpAddr::from_str(text) {
            return Some(Self(address.to_canonical().into()));
        }
        let range = IpNet::from_str(text).ok()?;
        // Addresses are canonical when they are matched, so ranges have to be canonical, too.
        if let IpAddr::V4(address) = range.addr().to_canonical()
            && let Some(length) = range.prefix_len().checked_sub(96)
            && matches!(range, IpNet::V6(_))
        {
            return IpNet::new(address.into(), length).ok().map(Self);
        }
        Some(Self(range))
    }
}

/// `network/range`, for example `/10.2.0.0/16` in the default network.
#[derive(Debug, Clone)]
pub(super) struct VipRange {
    pub(super) network: String,
    pub(super) range: IpNet,
}

impl<'de> Deserialize<'de> for VipRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "network/range (\"/10.2.0.0/16\" in the default network)";
        parsed(deserializer, expected, |text| {
            let (network, range) = text.split_once('/')?;
            Some(Self {
                network: network.to_owned(),
                range: Range::parse(range)?.0.trunc(),
            })
        })
    }
}

/// `namespace/hostname`, the key of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ServiceKey {
    pub(super) namespace: String,
    pub(super) hostname: String,
}

impl ServiceKey {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (namespace, hostname) = text.split_once('/')?;
        let good = !namespace.is_empty() && !hostname.is_empty() && !hostname.contains('/');
        good.then(|| Self {
            namespace: namespace.to_owned(),
            hostname: hostname.to_owned(),
        })
    }
}

impl ServiceKey {
    pub(super) fn build(&self, texts: &mut Interner) -> NamespacedHostname {
        let namespace = texts.get(&self.namespace);
        NamespacedHostname {
            namespace,
            hostname: texts.get(&self.hostname),
        }
    }
}

impl<'de> Deserialize<'de> for ServiceKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, "namespace/hostname", Self::parse)
    }
}

/// One name from a closed set. Case, `_` and `-` are ignored: the workload API writes HOST_NETWORK
/// for the HostNetwork of the file.
pub(super) fn named<'de, D: Deserializer<'de>, T: Copy>(
    deserializer: D,
    names: &[(&str, T)],
) -> Result<T, D::Error> {
    let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    let all: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
    let all = all.join(", ");
    yaml::parsed(deserializer, &format!("one of {all}"), |text| {
        let wanted = plain(text);
        let found = names.iter().find(|(name, _)| plain(name) == wanted);
        found
            .map(|(_, value)| *value)
            .ok_or_else(|| format!("{text:?} is not one of {all}"))
    })
}
