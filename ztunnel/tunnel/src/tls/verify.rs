//! The verification of peers: webpki checks the chain (signatures, validity, extended key usage),
//! this module checks the identity. A workload's certificate has exactly one URI name, its SPIFFE
//! identity; DNS names and subjects are ignored (SPIFFE X.509-SVID, sections 2 and 5.2).

use std::fmt;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible,
    RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::KeyUsage;
use x509_parser::extensions::GeneralName;

use super::error::IdentityRefusal;
use super::revocation::{PeerChain, Revocations};
use mesh::Identity;

/// The cipher suites and key exchange groups of every handshake: TLS 1.3 only, AES-128-GCM first
/// (the cheapest per byte), the post-quantum hybrid X25519MLKEM768 first among the groups.
pub(super) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
                aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
                aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    &PROVIDER
}

/// The identity in a certificate.
///
/// # Errors
/// When it does not have exactly one URI name that is a workload's SPIFFE identity.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity, IdentityRefusal> {
    let (_rest, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_malformed| IdentityRefusal::Unreadable)?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|_malformed| IdentityRefusal::Unreadable)?
        .ok_or(IdentityRefusal::Missing)?;
    let mut found = None;
    let mut count = 0;
    for name in &names.value.general_names {
        if let GeneralName::URI(uri) = name {
            found = Some(*uri);
            count += 1;
        }
    }
    match found {
        None => Err(IdentityRefusal::Missing),
        Some(_) if count > 1 => Err(IdentityRefusal::Several { count }),
        Some(uri) => uri.parse().map_err(|_foreign| IdentityRefusal::Foreign {
            found: uri.chars().take(256).collect(),
        }),
    }
}

/// The mesh's roots, and the revocation lists.
#[derive(Clone)]
pub(super) struct Trust {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) revocations: Revocations,
}

impl Trust {
    /// Checks a peer's chain, but not its identity.
    pub(super) fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<PeerChain, rustls::Error> {
        let leaf = webpki::EndEntityCert::try_from(end_entity).map_err(certificate_error)?;
        let algorithms = provider().signature_verification_algorithms.all;
        let path = leaf
            .verify_for_usage(
                algorithms,
                &self.roots.roots,
                intermediates,
                now,
                usage,
                None,
                None,
            )
            .map_err(certificate_error)?;
        let chain = self.revocations.peer_chain(&path);
        if self.revocations.is_revoked(&chain) {
            return Err(CertificateError::Revoked.into());
        }
        Ok(chain)
    }
}

/// The signature methods of both verifier traits of rustls: TLS 1.3 only, with the algorithms of
/// [`provider`].
macro_rules! signature_methods {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _certificate: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let algorithms = &provider().signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    };
}

/// Verifies the server of one connection: it must have one of the expected identities.
pub(super) struct ServerVerifier {
    pub(super) trust: Trust,
    pub(super) expected: Vec<Identity>,
}

impl ServerVerifier {
    fn check_identity(&self, certificate: &CertificateDer<'_>) -> Result<(), IdentityRefusal> {
        let found = identity_of(certificate)?;
        if self.expected.contains(&found) {
            return Ok(());
        }
        let names: Vec<_> = self.expected.iter().take(4).map(Identity::as_str).collect();
        let expected = if names.is_empty() {
            "no identity".to_owned()
        } else {
            names.join(" or ")
        };
        Err(IdentityRefusal::Unexpected { found, expected })
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let usage = KeyUsage::server_auth();
        self.trust.check(end_entity, intermediates, now, usage)?;
        self.check_identity(end_entity).map_err(identity_error)?;
        Ok(ServerCertVerified::assertion())
    }

    signature_methods!();
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier")
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}

/// Verifies the clients that connect to one local identity: they must be of its trust domain.
pub(super) struct ClientVerifier {
    pub(super) trust: Trust,
    pub(super) local_identity: Identity,
}

impl ClientVerifier {
    fn check_identity(&self, certificate: &CertificateDer<'_>) -> Result<(), IdentityRefusal> {
        let found = identity_of(certificate)?;
        if found.trust_domain() == self.local_identity.trust_domain() {
            return Ok(());
        }
        let trust_domain = self.local_identity.trust_domain().to_owned();
        Err(IdentityRefusal::TrustDomain {
            found,
            trust_domain,
        })
    }
}

impl ClientCertVerifier for ClientVerifier {
    /// No hints: a client of the mesh has only one certificate to choose from.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let usage = KeyUsage::client_auth();
        self.trust.check(end_entity, intermediates, now, usage)?;
        self.check_identity(end_entity).map_err(identity_error)?;
        Ok(ClientCertVerified::assertion())
    }

    signature_methods!();
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier")
            .field("local_identity", &self.local_identity)
            .finish_non_exhaustive()
    }
}

/// Wraps the refusal in rustls's error, from which the handshake extracts it. The peer gets the
/// alert certificate_unknown.
fn identity_error(refusal: IdentityRefusal) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(refusal))).into()
}

/// The rustls error whose alert describes the problem to the peer.
fn certificate_error(error: webpki::Error) -> rustls::Error {
    match error {
        webpki::Error::CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time, not_after }
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        // The roots of two meshes may have the same subject; then only the signature check fails.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            CertificateError::UnknownIssuer
        }
        webpki::Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        webpki::Error::BadDer | webpki::Error::BadDerTime => CertificateError::BadEncoding,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
    .into()
}
