//! One revocation list, as a set of serial numbers. webpki parses it strictly: version 2, no delta
//! lists, no indirect lists, no unknown critical extensions.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use foldhash::HashSet;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject as _;
use webpki::{BorrowedCertRevocationList, CertRevocationList, RawPublicKeyEntity};

use super::super::verify::provider;
use super::RevocationError;
use super::chain::{CertificateAuthority, Serial};

/// The limit of lists in a file. A mesh has far fewer authorities.
const LIMIT: usize = 256;

/// A certificate revocation list.
pub struct RevocationList {
    /// The issuer's name: in DER without its outer tag, and as text for people.
    name: Box<[u8]>,
    issuer_text: String,
    revoked: HashSet<Serial>,
    /// `None` when the date cannot be represented.
    next_update: Option<SystemTime>,
    signed_bytes: Box<[u8]>,
    signature: Box<[u8]>,
    /// Whether these authorities signed the list. Each signature is checked once.
    signers: Mutex<Vec<(Arc<CertificateAuthority>, bool)>>,
}

impl RevocationList {
    /// Parses the content of a file: one list in DER, or one or more in PEM. `path` is for error
    /// messages.
    ///
    /// # Errors
    /// The file holds no list, too many, or one that is not valid.
    pub fn parse_all(path: &Path, bytes: &[u8]) -> Result<Vec<Self>, RevocationError> {
        let unusable = |number: usize, why: String| RevocationError::Unusable {
            path: path.to_owned(),
            number,
            why,
        };
        let mut lists = Vec::new();
        // A sequence tag: the file is one list in DER.
        if bytes.first() == Some(&0x30) {
            lists.push(Self::new(bytes).map_err(|why| unusable(1, why))?);
            return Ok(lists);
        }
        for block in CertificateRevocationListDer::pem_slice_iter(bytes) {
            let number = lists.len() + 1;
            if number > LIMIT {
                return Err(RevocationError::TooMany {
                    path: path.to_owned(),
                    limit: LIMIT,
                });
            }
            let der = block.map_err(|error| unusable(number, error.to_string()))?;
            lists.push(Self::new(&der).map_err(|why| unusable(number, why))?);
        }
        if lists.is_empty() {
            return Err(RevocationError::Empty {
                path: path.to_owned(),
            });
        }
        Ok(lists)
    }

    fn new(der: &[u8]) -> Result<Self, String> {
        let borrowed = BorrowedCertRevocationList::from_der(der).map_err(|e| e.to_string())?;
        let mut revoked = HashSet::default();
        for entry in &borrowed {
            let entry = entry.map_err(|error| format!("an entry is invalid: {error}"))?;
            revoked.insert(Serial::from_slice(entry.serial_number));
        }
        let list = CertRevocationList::from(borrowed);
        let (_rest, parsed) = x509_parser::parse_x509_crl(der).map_err(|e| e.to_string())?;
        let tbs = &parsed.tbs_cert_list;
        let next_update = tbs.next_update.and_then(|at| {
            let seconds = u64::try_from(at.timestamp()).ok()?;
            UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
        });
        Ok(Self {
            name: list.issuer().into(),
            issuer_text: tbs.issuer.to_string().chars().take(256).collect(),
            revoked,
            next_update,
            signed_bytes: tbs.as_ref().into(),
            signature: parsed.signature_value.data.as_ref().into(),
            signers: Mutex::default(),
        })
    }

    /// The number of certificates that the list revokes.
    #[must_use]
    pub fn revoked_count(&self) -> usize {
        self.revoked.len()
    }

    /// The issuer's name as text, at most 256 characters.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer_text
    }

    /// Whether the list's `nextUpdate` has passed.
    pub(super) fn is_overdue_at(&self, now: SystemTime) -> bool {
        self.next_update.is_some_and(|until| until <= now)
    }

    /// Whether the list revokes that serial number for an issuer of that name.
    pub(super) fn revokes(&self, serial: &Serial, issuer: &[u8]) -> bool {
        *self.name == *issuer && self.revoked.contains(serial)
    }

    /// Whether the authority signed the list.
    pub(super) fn is_signed_by(&self, authority: &Arc<CertificateAuthority>) -> bool {
        let mut signers = self.signers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, is)) = signers.iter().find(|(known, _)| known == authority) {
            return *is;
        }
        let is = self.verify(authority);
        if !is {
            tracing::warn!(
                issuer = self.issuer_text,
                "a revocation list has the name of an authority but is not signed by its key: it is \
                 ignored for the certificates of that authority"
            );
        }
        signers.push((authority.clone(), is));
        is
    }

    /// Whether the authority's key verifies the signature. The algorithm that the list names is
    /// ignored: all supported algorithms are tried.
    fn verify(&self, authority: &CertificateAuthority) -> bool {
        let algorithms = provider().signature_verification_algorithms.all;
        let Ok(key) = RawPublicKeyEntity::try_from(&authority.key) else {
            return false;
        };
        let verifies =
            |algorithm| key.verify_signature(algorithm, &self.signed_bytes, &self.signature);
        algorithms
            .iter()
            .any(|algorithm| verifies(*algorithm).is_ok())
    }
}

impl PartialEq for RevocationList {
    fn eq(&self, other: &Self) -> bool {
        self.signed_bytes == other.signed_bytes && self.signature == other.signature
    }
}
