//! The requester's side of signing: a fresh key and the request that it signs.

use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, CertificateSigningRequest, DistinguishedName, KeyPair,
    PKCS_ECDSA_P256_SHA256, SanType,
};

use mesh::Identity;

/// Generates a key, and a certificate signing request with its public key for an identity.
pub(super) fn generate(
    identity: &Identity,
) -> Result<(KeyPair, CertificateSigningRequest), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.as_str())?)];
    let request = params.serialize_request(&key)?;
    Ok((key, request))
}
