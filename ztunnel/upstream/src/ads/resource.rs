//! The two resource types, and the checks of a resource before and after decoding.

use mesh::{Change, Fault, Interner};

use super::decode::{DecodeError, decode_address, decode_authorization};
use api::envoy::service::discovery::v3::Resource;

/// Workloads and services.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Authorization policies.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";

/// A subscribed type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Address,
    Authorization,
}

impl Type {
    pub(super) fn of(url: &str) -> Option<Self> {
        match url {
            ADDRESS_TYPE => Some(Self::Address),
            AUTHORIZATION_TYPE => Some(Self::Authorization),
            _ => None,
        }
    }

    pub(super) const fn url(self) -> &'static str {
        match self {
            Self::Address => ADDRESS_TYPE,
            Self::Authorization => AUTHORIZATION_TYPE,
        }
    }
}

/// A resource is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResourceError {
    #[error("the resource has no content")]
    NoContent,
    #[error("the resource contains a message of type {found:?}, which is not the subscribed type")]
    WrongType { found: String },
    /// A removal contains only the name of the resource, so it has to be the key of the content.
    #[error("the resource contains {key:?}; expected the name of the resource")]
    Misnamed { key: String },
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl ResourceError {
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::NoContent => "no_content",
            Self::WrongType { .. } => "wrong_type",
            Self::Misnamed { .. } => "misnamed",
            Self::Decode(error) => error.reason(),
        }
    }

    pub(super) const fn fault(&self) -> Fault {
        Fault::Mesh
    }
}

/// The encoded content of a resource.
pub(super) fn content(kind: Type, resource: &Resource) -> Result<&[u8], ResourceError> {
    let any = resource.resource.as_ref().ok_or(ResourceError::NoContent)?;
    // Some control planes omit the inner type, which equals the outer one.
    if any.type_url.is_empty() || any.type_url == kind.url() {
        return Ok(&any.value);
    }
    Err(ResourceError::WrongType {
        found: any.type_url.chars().take(256).collect(),
    })
}

/// Decodes a resource. `warn` is called for each rule of a policy that is enforced more strictly than
/// intended.
pub(super) fn decode(
    kind: Type,
    name: &str,
    content: &[u8],
    trust_domain: &str,
    texts: &mut Interner,
    mut warn: impl FnMut(&str),
) -> Result<Change, ResourceError> {
    let change = match kind {
        Type::Address => decode_address(content, trust_domain, texts)?,
        Type::Authorization => {
            let decoded = decode_authorization(content, texts)?;
            decoded.warnings.iter().for_each(|warning| warn(warning));
            Change::Policy(Box::new(decoded.policy))
        }
    };
    let key = match &change {
        Change::Workload(workload) => workload.uid.to_string(),
        Change::Service(service) => service.key().to_string(),
        Change::Policy(policy) => policy.key(),
        Change::RemoveWorkload(_)
        | Change::RemoveService(_)
        | Change::RemovePolicy(_)
        | Change::Placeholder { .. }
        | Change::RemovePlaceholder(_) => String::new(),
    };
    // An empty namespace means `default`; the name may have either.
    let is_default_namespace = !matches!(change, Change::Workload(_))
        && name
            .strip_prefix('/')
            .is_some_and(|bare| key.strip_prefix("default/") == Some(bare));
    if name == key || is_default_namespace {
        return Ok(change);
    }
    let key = key.chars().take(256).collect();
    Err(ResourceError::Misnamed { key })
}
