//! Parses the answer of the control plane and checks it as a peer will check it.
//!
//! The chain is a list of PEM texts, the leaf first and the root last; each text may hold several
//! certificates. During a root rotation the last text is a bundle, and some authorities put their
//! intermediates there, too: a certificate of the last text that is not self-issued is no root,
//! unless the text has no other.

use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certificate::X509Certificate;

use mesh::Identity;
use tunnel::tls::{IssueError, Issued};

/// The largest answer, in bytes.
pub(super) const LIMIT: usize = 512 * 1024;
/// The most certificates in an answer.
const CERTIFICATES: usize = 128;

/// Reads the certificate chain that the authority returned for `key`, one PEM text an element.
///
/// # Errors
/// The chain is not valid PEM, is incomplete, or does not fit the key or the identity.
pub fn read(texts: &[String], key: &KeyPair, identity: &Identity) -> Result<Issued, IssueError> {
    let mut chain = parse(texts)?;
    let mut last = chain.pop().unwrap_or_default();
    // A single text holds the whole chain: its last certificate is the root.
    if chain.is_empty() && last.len() > 1 {
        let root = last.split_off(last.len() - 1);
        chain.push(std::mem::replace(&mut last, root));
    }
    if chain.is_empty() {
        return Err(unusable(format!(
            "the answer holds {} and no root",
            match last.len() {
                0 => "no certificate".to_owned(),
                count => format!("{count} certificate"),
            }
        )));
    }
    let mut chain = chain.concat();
    let (roots, intermediates) = split(last)?;
    chain.extend(intermediates);
    if let Some(leaf) = chain.first() {
        check_key(leaf, key)?;
    }
    let issued = Issued {
        chain,
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        roots,
    };
    issued.check(identity)?;
    Ok(issued)
}

/// The certificates of each text that has any.
fn parse(texts: &[String]) -> Result<Vec<Vec<CertificateDer<'static>>>, IssueError> {
    let mut total = 0;
    let mut parsed = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        let part = format!("part {} of {} of the answer", at + 1, texts.len());
        let mut certificates = Vec::new();
        for block in CertificateDer::pem_slice_iter(text.as_bytes()) {
            let block =
                block.map_err(|error| unusable(format!("{part} cannot be parsed: {error}")))?;
            total += 1;
            if total > CERTIFICATES {
                return Err(unusable(format!(
                    "the answer holds more than {CERTIFICATES} certificates"
                )));
            }
            certificates.push(block);
        }
        if certificates.is_empty() && !text.trim().is_empty() {
            return Err(unusable(format!("{part} holds no certificate")));
        }
        if !certificates.is_empty() {
            parsed.push(certificates);
        }
    }
    Ok(parsed)
}

type Certificates = Vec<CertificateDer<'static>>;

/// Splits the certificates of the last text into roots and intermediates.
fn split(last: Certificates) -> Result<(Certificates, Certificates), IssueError> {
    let (mut roots, mut intermediates) = (Vec::new(), Vec::new());
    for certificate in last {
        let parsed = x509(&certificate)?;
        if parsed.subject().as_raw() == parsed.issuer().as_raw() {
            roots.push(certificate);
        } else {
            intermediates.push(certificate);
        }
    }
    if roots.is_empty() {
        roots.extend(intermediates.pop());
    }
    Ok((roots, intermediates))
}

fn check_key(leaf: &CertificateDer<'_>, key: &KeyPair) -> Result<(), IssueError> {
    if x509(leaf)?.public_key().raw == key.subject_public_key_info() {
        return Ok(());
    }
    Err(unusable(
        "the certificate is for another key than that of the request".to_owned(),
    ))
}

fn x509<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IssueError> {
    match x509_parser::parse_x509_certificate(certificate) {
        Ok((_rest, parsed)) => Ok(parsed),
        Err(error) => Err(unusable(format!(
            "a certificate of the answer cannot be decoded: {error}"
        ))),
    }
}

const fn unusable(why: String) -> IssueError {
    IssueError::Unusable { why }
}
