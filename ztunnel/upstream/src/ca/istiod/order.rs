//! What is asked: a signing request for a fresh key, and the metadata that says who asks.

use std::path::Path;

use prost_types::value::Kind;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use tonic::Request;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use zeroize::Zeroizing;

use super::error::IstiodError;
use super::{Asker, Config, roots};
use api::istio::v1::auth::IstioCertificateRequest;
use mesh::Identity;
use tunnel::tls::IssueError;

/// The key of the request's metadata under which a node says for whom it asks.
const IMPERSONATED: &str = "ImpersonatedIdentity";
/// The header that tells a control plane of several clusters whose token it gets.
const CLUSTER: &str = "clusterid";
/// Service account tokens have some kilobytes at most.
const TOKEN_LIMIT: usize = 16 * 1024;

/// A certificate to be asked for.
pub(super) struct Order {
    pub(super) key: KeyPair,
    csr: String,
    /// For whom, unless the token says it.
    on_behalf_of: Option<String>,
}

impl Order {
    pub(super) fn new(identity: &Identity, asker: Asker) -> Result<Self, IssueError> {
        let (key, csr) = draft(identity.as_str()).map_err(|error| IssueError::Unusable {
            why: format!("a signing request for {identity} cannot be made: {error}"),
        })?;
        Ok(Self {
            key,
            csr,
            on_behalf_of: match asker {
                Asker::Node => Some(identity.to_string()),
                Asker::Workload => None,
            },
        })
    }

    pub(super) fn request(
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

fn draft(uri: &str) -> Result<(KeyPair, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri)?)];
    let csr = params.serialize_request(&key)?.pem()?;
    Ok((key, csr))
}

/// The metadata that is the same for each request.
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
            return Err(refused("the name belongs to the protocol"));
        }
        let key = AsciiMetadataKey::from_bytes(lower.as_bytes())
            .map_err(|_invalid| refused("the name is not one of a text header"))?;
        let mut value = AsciiMetadataValue::try_from(value.as_str())
            .map_err(|_invalid| refused("the value is not visible ASCII"))?;
        value.set_sensitive(true);
        all.append(key, value);
    }
    if !config.cluster_id.is_empty() {
        let value = AsciiMetadataValue::try_from(config.cluster_id.as_str());
        let value = value.map_err(|_invalid| IstiodError::Header {
            name: CLUSTER.to_owned(),
            why: "the cluster's id is not visible ASCII",
        })?;
        all.insert(CLUSTER, value);
    }
    Ok(all)
}

/// The authorization header with the token that is in the file now.
fn bearer(path: &Path) -> Result<AsciiMetadataValue, String> {
    // Large enough never to grow: no copy of the token is left behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(TOKEN_LIMIT + 2));
    roots::read(path, TOKEN_LIMIT, &mut bytes).map_err(|error| error.to_string())?;
    let token = bytes.trim_ascii();
    if token.is_empty() {
        return Err("it is empty".to_owned());
    }
    let header = Zeroizing::new([b"Bearer ", token].concat());
    let mut value = AsciiMetadataValue::try_from(header.as_slice())
        .map_err(|_invalid| "it holds what no header may: is it a token?".to_owned())?;
    // Neither shown nor put into a compression table.
    value.set_sensitive(true);
    Ok(value)
}
