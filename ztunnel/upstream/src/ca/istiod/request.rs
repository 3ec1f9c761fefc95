//! A request to the control plane: a signing request for a fresh key, and the metadata of the
//! requester.

use std::path::Path;

use prost_types::value::Kind;
use rcgen::KeyPair;
use tonic::Request;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use zeroize::Zeroizing;

use super::error::IstiodError;
use super::{Config, Requester, roots};
use crate::ca::key;
use api::istio::v1::auth::IstioCertificateRequest;
use mesh::Identity;
use tunnel::tls::IssueError;

/// The metadata key with which a node requests a certificate for a workload.
const IMPERSONATED: &str = "ImpersonatedIdentity";
/// The header with the cluster of the token, for a control plane of several clusters.
const CLUSTER: &str = "clusterid";
/// The largest token file, in bytes; service account tokens have a few kilobytes.
const TOKEN_LIMIT: usize = 16 * 1024;

/// A certificate to request.
pub(super) struct CertificateRequest {
    pub(super) key: KeyPair,
    csr: String,
    /// The requested identity; `None` if the token contains it.
    on_behalf_of: Option<String>,
}

impl CertificateRequest {
    pub(super) fn new(identity: &Identity, requester: Requester) -> Result<Self, IssueError> {
        let (key, csr) = key::generate(identity)
            .and_then(|(key, request)| Ok((key, request.pem()?)))
            .map_err(|error| IssueError::Unusable {
                why: format!("cannot create a signing request for {identity}: {error}"),
            })?;
        Ok(Self {
            key,
            csr,
            on_behalf_of: match requester {
                Requester::Node => Some(identity.to_string()),
                Requester::Workload => None,
            },
        })
    }

    pub(super) fn message(
        &self,
        config: &Config,
        headers: &MetadataMap,
    ) -> Result<Request<IstioCertificateRequest>, IssueError> {
        let metadata = self.on_behalf_of.as_ref().map(|identity| {
            let kind = Some(Kind::StringValue(identity.clone()));
            prost_types::Struct {
                fields: [(IMPERSONATED.to_owned(), prost_types::Value { kind })].into(),
            }
        });
        let mut request = Request::new(IstioCertificateRequest {
            csr: self.csr.clone(),
            validity_duration: i64::try_from(config.validity.as_secs()).unwrap_or(i64::MAX),
            metadata,
        });
        *request.metadata_mut() = headers.clone();
        request.set_timeout(config.request_timeout);
        if let Some(path) = &config.token {
            let bearer = bearer(path).map_err(|why| IssueError::Unavailable {
                issuer: config.address.clone(),
                why: format!("the token file {}: {why}", path.display()),
            })?;
            request.metadata_mut().insert("authorization", bearer);
        }
        Ok(request)
    }
}

/// The metadata of every request.
pub(super) fn headers(config: &Config) -> Result<MetadataMap, IstiodError> {
    let mut all = MetadataMap::new();
    for (name, value) in &config.headers {
        let refused = |why| IstiodError::Header {
            name: name.clone(),
            why,
        };
        let lower = name.to_ascii_lowercase();
        if lower.starts_with("grpc-")
            || ["te", "content-type", "user-agent", "host", "connection"].contains(&lower.as_str())
        {
            return Err(refused("the name is reserved for gRPC"));
        }
        let key = AsciiMetadataKey::from_bytes(lower.as_bytes())
            .map_err(|_invalid| refused("the name is not a valid text header"))?;
        let mut value = AsciiMetadataValue::try_from(value.as_str())
            .map_err(|_invalid| refused("the value is not visible ASCII"))?;
        value.set_sensitive(true);
        all.append(key, value);
    }
    if !config.cluster_id.is_empty() {
        let value = AsciiMetadataValue::try_from(config.cluster_id.as_str());
        let value = value.map_err(|_invalid| IstiodError::Header {
            name: CLUSTER.to_owned(),
            why: "the cluster id is not visible ASCII",
        })?;
        all.insert(CLUSTER, value);
    }
    Ok(all)
}

/// The authorization header with the current token of the file.
fn bearer(path: &Path) -> Result<AsciiMetadataValue, String> {
    // Allocated once at full size, so that no copy of the token is left in freed memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(TOKEN_LIMIT + 2));
    roots::read(path, TOKEN_LIMIT, &mut bytes).map_err(|error| error.to_string())?;
    let token = bytes.trim_ascii();
    if token.is_empty() {
        return Err("the file is empty".to_owned());
    }
    let header = Zeroizing::new([b"Bearer ", token].concat());
    let mut value = AsciiMetadataValue::try_from(header.as_slice()).map_err(|_invalid| {
        "the content is not valid in a header, so it is not a token".to_owned()
    })?;
    // Not shown in debug output and not added to a compression table.
    value.set_sensitive(true);
    Ok(value)
}
