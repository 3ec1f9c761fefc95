//! Decodes resources into the types of `mesh`. Decoding is a pure function that never panics. A value
//! that cannot be interpreted safely refuses the resource.
//!
//! Facts (Istio's workload API, `istio.workload.Address` and `istio.security.Authorization`): an
//! empty trust domain is the mesh's own, an empty namespace or service account is `default`,
//! addresses are 4 or 16 bytes, a `NetworkAddress` with a `length` shorter than its address is a
//! range, a target port of 0 in a service means that each backend sets its own.
//!
//! A control plane may be newer than this proxy. An unknown enum value does not refuse the resource,
//! unless no value is a safe substitute:
//!
//! | unknown value | substitute | reason |
//! | --- | --- | --- |
//! | tunnel protocol | HBONE | Plain TCP could send bytes in plaintext that have to be encrypted. A tunnel fails if the peer does not support it. |
//! | application tunnel | PROXY header | The application may trust a PROXY header at the start of the connection; the client must not be able to write it. |
//! | workload status | unhealthy | The workload is chosen only for services that accept unhealthy backends. |
//! | network mode | standard | A workload on the node's network is reached in plaintext; the bytes may have to be encrypted. |
//! | visibility | public | A client for which the service is invisible reaches the address in plaintext and bypasses the waypoint. |
//! | workload type, address families | the API's default | The former is only telemetry, the latter only a hint for DNS. |
//! | load balancing | ignored | All endpoints are equally valid. |
//! | scope or action of a policy | none: the policy is refused | Each substitute would enforce a different policy. |
//!
//! Unknown conditions of a policy (fields of a newer API, an extension, or a text comparison of an
//! unknown kind) are handled as Istio handles attributes that a node proxy cannot see: an ALLOW rule
//! with an unknown condition never matches, a DENY rule is enforced without the condition. To refuse
//! the policy would be less safe: without the only ALLOW policy every connection is allowed, and
//! without the DENY policy none is denied. A value that cannot be decoded (an address of five bytes)
//! refuses the whole policy.

mod error;
mod fields;
mod policy;
mod service;
mod unknown_fields;
mod workload;

use prost::Message as _;

pub use self::error::DecodeError;
use self::fields::FieldError;
use api::istio::security::Authorization;
use api::istio::workload::{Address, address};
use mesh::{Change, Interner, Policy};

/// A policy as it will be enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedPolicy {
    /// The policy.
    pub policy: Policy,
    /// One message for each unknown condition, which makes the policy stricter than intended. The
    /// caller logs them.
    pub warnings: Vec<String>,
}

/// Decodes an `istio.workload.Address` into the change that adds or replaces the workload or service.
/// `trust_domain` is that of workloads that set none.
///
/// # Errors
/// When the bytes are not such a message or a field is invalid.
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
            .map_err(|error| error.in_resource("workload", &wire.uid)),
        Some(address::Type::Service(wire)) => service::build(&wire, texts)
            .map(|service| Change::Service(Box::new(service)))
            .map_err(|error| {
                let key = format!("{}/{}", wire.namespace, wire.hostname);
                error.in_resource("service", &key)
            }),
        None => Err(DecodeError::Empty),
    }
}

/// Decodes an `istio.security.Authorization`.
///
/// # Errors
/// When the bytes are not such a message or a field is invalid.
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
    let rules = unknown_fields::scan_rules(bytes).ok_or_else(|| {
        FieldError::new("the fields of the rules cannot be decoded").in_resource("policy", &name())
    })?;
    policy::build(&wire, &rules, texts).map_err(|error| error.in_resource("policy", &name()))
}

#[cfg(test)]
mod tests;
