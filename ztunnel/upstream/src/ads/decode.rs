//! From the bytes of a resource to what the mesh's types say: pure, total, and strict where a
//! guess could open something.
//!
//! Facts (Istio's workload API, `istio.workload.Address` and `istio.security.Authorization`): an
//! empty trust domain is the mesh's own, an empty namespace or service account is `default`,
//! addresses are 4 or 16 bytes, a `NetworkAddress` with a `length` shorter than its address is a
//! range, a target port of 0 in a service says that every backend names its own.
//!
//! A control plane may be newer than this proxy. A number of an enum that is not known here never
//! costs the resource, except where nothing safe can stand for it:
//!
//! | unknown | is read as | because |
//! | --- | --- | --- |
//! | tunnel protocol | HBONE | in plain TCP, bytes that were to be encrypted would leave in the clear; a tunnel that the peer does not speak fails |
//! | application tunnel | PROXY header | the application trusts what comes first; it must not be the client who writes that |
//! | workload status | unhealthy | it is chosen only where the service takes all |
//! | network mode | its own network | no proxy accepts tunnels on the node's network: bytes that were to be encrypted would leave in the clear |
//! | visibility | public | who does not see a service reaches its address in the clear, around its waypoint |
//! | workload type, address families | the API's default | a name in telemetry; a hint for DNS |
//! | load balancing | left out | every endpoint is as good as any other |
//! | scope or action of a policy | refused | whatever stood for it would enforce another policy |
//!
//! Conditions of a policy that are not known here (fields that came after this was written, or an
//! extension) are handled as Istio handles attributes that a node proxy cannot see: an ALLOW never
//! matches by them, a DENY is enforced without them. To refuse such a policy would be worse:
//! without the only ALLOW policy everything is allowed, and without the DENY nothing is denied.
//! A text that is compared in a way that is not known here is such a condition. A value that cannot
//! be read (an address of five bytes) refuses the whole policy.

mod error;
mod fields;
mod foreign;
mod policy;
mod service;
mod workload;

use prost::Message as _;

pub use self::error::DecodeError;
use self::fields::BadField;
use api::istio::security::Authorization;
use api::istio::workload::{Address, address};
use mesh::{Change, Interner, Policy};

/// A policy as it will be enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedPolicy {
    /// The policy.
    pub policy: Policy,
    /// Where conditions are not known here; the policy is stricter than it was meant. To be
    /// logged.
    pub doubts: Vec<String>,
}

/// Reads an `istio.workload.Address`: the change that says that the workload or the service is
/// there. `trust_domain` is that of workloads that name none.
///
/// # Errors
/// When it is no such message or a field cannot be used.
pub fn decode_address(
    bytes: &[u8],
    trust_domain: &str,
    texts: &mut Interner,
) -> Result<Change, DecodeError> {
    let address = Address::decode(bytes).map_err(|source| DecodeError::Malformed {
        message: "istio.workload.Address",
        source,
    })?;
    match address.r#type {
        Some(address::Type::Workload(wire)) => workload::build(&wire, trust_domain, texts)
            .map(|workload| Change::Workload(Box::new(workload)))
            .map_err(|bad| bad.of("workload", &wire.uid)),
        Some(address::Type::Service(wire)) => service::build(&wire, texts)
            .map(|service| Change::Service(Box::new(service)))
            .map_err(|bad| bad.of("service", &format!("{}/{}", wire.namespace, wire.hostname))),
        None => Err(DecodeError::Empty),
    }
}

/// Reads an `istio.security.Authorization`.
///
/// # Errors
/// When it is no such message or a field cannot be used.
pub fn decode_authorization(
    bytes: &[u8],
    texts: &mut Interner,
) -> Result<DecodedPolicy, DecodeError> {
    let malformed = |source| DecodeError::Malformed {
        message: "istio.security.Authorization",
        source,
    };
    let wire = Authorization::decode(bytes).map_err(malformed)?;
    let name = || format!("{}/{}", wire.namespace, wire.name);
    let foreign = foreign::rules(bytes)
        .ok_or_else(|| BadField::new("not the rules that were read").of("policy", &name()))?;
    policy::build(&wire, &foreign, texts).map_err(|bad| bad.of("policy", &name()))
}

#[cfg(test)]
mod tests;
