//! The certificate of one identity, ready for handshakes: parsed and checked against its key once,
//! with the rustls configurations that all of its connections share.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::ResolvesClientCert;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroize;

use super::error::IssueError;
use super::issuer::Issued;
use super::revocation::Revocations;
use super::verify::{ClientVerifier, ServerVerifier, Trust, identity_of, provider};
use mesh::Identity;

/// The ALPN protocol of HBONE, the only one that is offered and accepted.
pub(super) const ALPN: &[u8] = b"h2";

/// A certificate in use. Its connections continue after it was replaced.
pub struct Credentials {
    identity: Identity,
    trust: Trust,
    server: Arc<ServerConfig>,
    client: ClientConfig,
    certified: Arc<CertifiedKey>,
    roots: Vec<CertificateDer<'static>>,
    serial: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// The details of a certificate that the admin interface shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateSummary {
    /// The identity of the certificate.
    pub identity: Identity,
    /// The state of the certificate.
    pub state: CertificateState,
    /// Serial number, hexadecimal; empty while there is no certificate.
    pub serial: String,
    /// Start of validity, seconds since 1970.
    pub not_before: u64,
    /// End of validity, seconds since 1970.
    pub not_after: u64,
    /// The chain that peers receive, leaf first; empty while there is no certificate.
    pub chain: Vec<CertificateDer<'static>>,
    /// The root certificates to which a peer's chain must lead.
    pub roots: Vec<CertificateDer<'static>>,
}

/// The state of an identity's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateState {
    /// The first certificate is being issued.
    Initializing,
    /// Valid.
    Available,
    /// It has expired and could not be renewed.
    Expired,
    /// There is none yet, and the last attempt failed.
    Unavailable {
        /// The error of the issuer.
        reason: String,
    },
}

/// The limit of a chain of certificates, bytes. TLS libraries accept handshake messages of at most
/// 64 KiB; the message also has its own fields.
const CHAIN_LIMIT: usize = 48 * 1024;

impl Credentials {
    /// Prepares an issued certificate for use and wipes the key's bytes. Peers whose certificate is
    /// in `revocations` are refused.
    ///
    /// # Errors
    /// [`IssueError::Unusable`] when it is not a valid certificate of `identity` with its key.
    pub fn new(
        identity: &Identity,
        issued: Issued,
        revocations: &Revocations,
    ) -> Result<Self, IssueError> {
        let leaf = issued
            .chain
            .first()
            .ok_or_else(|| unusable(&"the chain is empty"))?;
        let found = identity_of(leaf).map_err(|error| unusable(&error))?;
        if found != *identity {
            return Err(unusable(&format!(
                "it is for {found} instead of {identity}"
            )));
        }
        let credentials = Self::build(identity, issued, revocations)?;
        if !credentials.is_valid_at(SystemTime::now()) {
            return Err(unusable(
                &"it has already expired: check the clocks of this node and of the authority",
            ));
        }
        Ok(credentials)
    }

    /// Credentials with a certificate that [`Self::new`] would reject.
    #[cfg(test)]
    pub(super) fn unchecked(identity: &Identity, issued: Issued) -> Self {
        Self::build(identity, issued, &Revocations::default()).unwrap()
    }

    fn build(
        identity: &Identity,
        mut issued: Issued,
        revocations: &Revocations,
    ) -> Result<Self, IssueError> {
        let length: usize = issued.chain.iter().map(|one| one.len()).sum();
        if length > CHAIN_LIMIT {
            return Err(unusable(&format!(
                "its chain has {length} bytes, more than the {CHAIN_LIMIT} that peers accept"
            )));
        }
        let signing = any_supported_type(&issued.key);
        issued.key.zeroize();
        let signing = signing.map_err(|error| unusable(&error))?;
        let leaf = issued
            .chain
            .first()
            .ok_or_else(|| unusable(&"the chain is empty"))?;
        let trust = Trust {
            roots: Arc::new(root_store(&issued.roots)?),
            revocations: revocations.clone(),
        };
        let LeafFields {
            serial,
            not_before,
            not_after,
        } = leaf_fields(leaf)?;
        let certified = Arc::new(CertifiedKey::new(issued.chain, signing));
        certified.keys_match().map_err(|error| unusable(&error))?;
        let resolver = Arc::new(SingleCertificate(certified.clone()));
        Ok(Self {
            identity: identity.clone(),
            server: Arc::new(server_config(identity, &trust, &resolver)?),
            client: client_config(&trust, &resolver)?,
            trust,
            certified,
            roots: issued.roots,
            serial,
            not_before,
            not_after,
        })
    }

    /// The identity of this certificate.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The end of its validity.
    #[must_use]
    pub const fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Serial number, hexadecimal.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Whether the certificate has not expired at that time.
    pub(super) fn is_valid_at(&self, now: SystemTime) -> bool {
        now < self.not_after
    }

    pub(super) fn summary(&self, now: SystemTime) -> CertificateSummary {
        let valid = self.is_valid_at(now);
        CertificateSummary {
            identity: self.identity.clone(),
            state: if valid {
                CertificateState::Available
            } else {
                CertificateState::Expired
            },
            serial: self.serial.clone(),
            not_before: unix_seconds(self.not_before),
            not_after: unix_seconds(self.not_after),
            chain: self.certified.cert.clone(),
            roots: self.roots.clone(),
        }
    }

    /// The roots and revocation lists that peers are checked against.
    pub(super) const fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The configuration for accepting connections.
    pub(super) const fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// The configuration for connecting to a server that has one of the `expected` identities.
    pub(super) fn client(&self, expected: &[Identity]) -> Arc<ClientConfig> {
        let verifier = ServerVerifier {
            trust: self.trust.clone(),
            expected: expected.to_vec(),
        };
        let mut config = self.client.clone();
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(verifier));
        Arc::new(config)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}

fn unusable(why: &dyn fmt::Display) -> IssueError {
    IssueError::Unusable {
        why: why.to_string(),
    }
}

pub(super) fn root_store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, IssueError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(root.clone())
            .map_err(|error| unusable(&format!("a root certificate is invalid: {error}")))?;
    }
    if store.is_empty() {
        return Err(unusable(&"it was issued without a root certificate"));
    }
    Ok(store)
}

/// The fields of a leaf that [`CertificateSummary`] shows.
struct LeafFields {
    /// Hexadecimal.
    serial: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

fn leaf_fields(leaf: &CertificateDer<'_>) -> Result<LeafFields, IssueError> {
    let (_rest, parsed) =
        x509_parser::parse_x509_certificate(leaf).map_err(|error| unusable(&error))?;
    let time = |at: x509_parser::time::ASN1Time| {
        UNIX_EPOCH + Duration::from_secs(u64::try_from(at.timestamp()).unwrap_or(0))
    };
    let validity = parsed.validity();
    Ok(LeafFields {
        serial: parsed.raw_serial_as_string().replace(':', ""),
        not_before: time(validity.not_before),
        not_after: time(validity.not_after),
    })
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn server_config(
    identity: &Identity,
    trust: &Trust,
    resolver: &Arc<SingleCertificate>,
) -> Result<ServerConfig, IssueError> {
    let verifier = ClientVerifier {
        trust: trust.clone(),
        local_identity: identity.clone(),
    };
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| unusable(&error))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(resolver.clone());
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.enable_secret_extraction = true;
    Ok(config)
}

fn client_config(
    trust: &Trust,
    resolver: &Arc<SingleCertificate>,
) -> Result<ClientConfig, IssueError> {
    // Accepts no server until a connection sets the identities that it expects.
    let verifier = ServerVerifier {
        trust: trust.clone(),
        expected: Vec::new(),
    };
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| unusable(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(resolver.clone());
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    Ok(config)
}

/// Presents the same certificate to every peer.
#[derive(Debug)]
struct SingleCertificate(Arc<CertifiedKey>);

impl ResolvesServerCert for SingleCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl ResolvesClientCert for SingleCertificate {
    fn resolve(
        &self,
        _root_hints: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
