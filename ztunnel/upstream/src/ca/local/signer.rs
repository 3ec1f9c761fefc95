//! Signs certificate requests with the root key.

use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;

use super::root::{BACKDATE, serial, uri};
use crate::ca::{CertificateSigner, SignError};
use mesh::Identity;

/// The root key, and the trust domain and the expiry of the certificates that it signs.
pub(super) struct RootSigner {
    pub(super) trust_domain: String,
    pub(super) root_not_after: OffsetDateTime,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

impl CertificateSigner for RootSigner {
    /// Takes two P-256 operations, far less than a millisecond.
    fn sign(
        &self,
        request: &CertificateSigningRequestDer<'_>,
        identity: &Identity,
        lifetime: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        // Also verifies the signature of the request.
        let request = CertificateSigningRequestParams::from_der(request).map_err(|error| {
            SignError::Request {
                why: error.to_string(),
            }
        })?;
        if identity.trust_domain() != self.trust_domain {
            return Err(SignError::TrustDomain {
                identity: identity.clone(),
                trust_domain: self.trust_domain.clone(),
            });
        }
        let now = SystemTime::now();
        let not_after = OffsetDateTime::from(now + lifetime).min(self.root_not_after);
        if not_after <= OffsetDateTime::from(now) {
            return Err(SignError::RootExpired);
        }
        let leaf = leaf_params(identity, OffsetDateTime::from(now - BACKDATE), not_after)
            .and_then(|params| params.signed_by(&request.public_key, &self.issuer))
            .map_err(|error| SignError::Failed {
                why: error.to_string(),
            })?;
        Ok(vec![leaf.der().clone()])
    }
}

/// The content of a leaf certificate. Only the public key of the request is used.
fn leaf_params(
    identity: &Identity,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial());
    params.not_before = not_before;
    params.not_after = not_after;
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(identity.as_str())?];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}
