//! Waypoints and network gateways of the local file.

use serde::{Deserialize, Deserializer};
use serde_yaml_ng::Value;

use super::scalars::{Port, ServiceKey, Vip};
use crate::{GatewayAddress, GatewayDestination, Interner, NetworkAddress};

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Gateway {
    #[serde(deserialize_with = "gateway_destination")]
    destination: Destination,
    #[serde(default = "hbone_port")]
    hbone_mtls_port: Port,
}

#[derive(Debug, Clone)]
enum Destination {
    Hostname(ServiceKey),
    Address(Vip),
}

impl Gateway {
    pub(super) fn build(&self, texts: &mut Interner) -> GatewayAddress {
        let destination = match &self.destination {
            Destination::Hostname(key) => GatewayDestination::Hostname(key.build(texts)),
            Destination::Address(vip) => GatewayDestination::Address(NetworkAddress {
                network: texts.get(&vip.network),
                address: vip.address,
            }),
        };
        GatewayAddress {
            destination,
            hbone_mtls_port: self.hbone_mtls_port.0,
        }
    }
}

const fn hbone_port() -> Port {
    Port(15008)
}

/// `network/address`, `namespace/hostname`, or a mapping with these keys.
fn gateway_destination<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Destination, D::Error> {
    use serde::de::Error as _;
    let value = Value::deserialize(deserializer)?;
    read_destination(&value).ok_or_else(|| {
        D::Error::custom(
            "expected \"network/address\", \"namespace/hostname\", {network, address} or {namespace, hostname}",
        )
    })
}

fn read_destination(value: &Value) -> Option<Destination> {
    if let Some(text) = value.as_str() {
        let address = Vip::parse(text).map(Destination::Address);
        return address.or_else(|| ServiceKey::parse(text).map(Destination::Hostname));
    }
    let mapping = value.as_mapping()?;
    let entry = |name: &str| mapping.get(name);
    let text = |name: &str| entry(name).and_then(Value::as_str);
    match mapping.len() {
        // The form of the API's oneof: the kind as the key of the value.
        1 => read_destination(entry("hostname").or_else(|| entry("address"))?),
        2 => match (
            text("namespace"),
            text("hostname"),
            text("network"),
            text("address"),
        ) {
            (Some(namespace), Some(hostname), None, None) => {
                ServiceKey::parse(&format!("{namespace}/{hostname}")).map(Destination::Hostname)
            }
            (None, None, Some(network), Some(address)) => {
                Vip::parse(&format!("{network}/{address}")).map(Destination::Address)
            }
            _ => None,
        },
        _ => None,
    }
}
