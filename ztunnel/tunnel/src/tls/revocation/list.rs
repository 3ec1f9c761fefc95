//! One revocation list: parsed strictly by webpki (version 2, no delta and no indirect lists, no
//! unknown critical extension) and kept as a set of serial numbers.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use foldhash::HashSet;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject as _;
use webpki::{BorrowedCertRevocationList, CertRevocationList, RawPublicKeyEntity};

use super::super::verify::provider;
use super::RevocationError;
use super::chain::{Authority, Serial};

/// The limit of lists in a file: more than any mesh has authorities.
const LIMIT: usize = 256;

/// A certificate revocation list.
pub struct RevocationList {
    /// The issuer's name: in DER without its outer tag, and as text for people.
    name: Box<[u8]>,
    readable: String,
    revoked: HashSet<Serial>,
    /// `None` when the date cannot be represented.
    next_update: Option<SystemTime>,
    signed: Box<[u8]>,
    signature: Box<[u8]>,
    /// Whether these authorities signed the list; each is checked once.
    signers: Mutex<Vec<(Arc<Authority>, bool)>>,
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
            let entry = entry.map_err(|error| format!("an entry is broken: {error}"))?;
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
            readable: tbs.issuer.to_string().chars().take(256).collect(),
            revoked,
            next_update,
            signed: tbs.as_ref().into(),
            signature: parsed.signature_value.data.as_ref().into(),
            signers: Mutex::default(),
        })
    }

    /// How many certificates the list revokes.
    #[must_use]
    pub fn revoked(&self) -> usize {
        self.revoked.len()
    }

    /// The issuer's name as text, at most 256 characters.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.readable
    }

    /// Whether the list's `nextUpdate` has passed.
    pub(super) fn is_old_at(&self, now: SystemTime) -> bool {
        self.next_update.is_some_and(|until| until <= now)
    }

    /// Whether the list revokes that serial number for an issuer of that name.
    pub(super) fn names(&self, serial: &Serial, issuer: &[u8]) -> bool {
        *self.name == *issuer && self.revoked.contains(serial)
    }

    /// Whether the authority signed it.
    pub(super) fn is_signed_by(&self, authority: &Arc<Authority>) -> bool {
        let mut signers = self.signers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, is)) = signers.iter().find(|(known, _)| known == authority) {
            return *is;
        }
        let is = self.verify(authority);
        if !is {
            tracing::warn!(
                issuer = self.readable,
                "a revocation list bears the name of an authority but not its signature: ignored \
                 for that authority's certificates"
            );
        }
        signers.push((authority.clone(), is));
        is
    }

    /// The algorithm that the list claims is ignored: if the authority's key verifies the
    /// signature, the authority made it.
    fn verify(&self, authority: &Authority) -> bool {
        let algorithms = provider().signature_verification_algorithms.all;
        let Ok(key) = RawPublicKeyEntity::try_from(&authority.key) else {
            return false;
        };
        let by = |algorithm| key.verify_signature(algorithm, &self.signed, &self.signature);
        algorithms.iter().any(|algorithm| by(*algorithm).is_ok())
    }
}

impl PartialEq for RevocationList {
    fn eq(&self, other: &Self) -> bool {
        self.signed == other.signed && self.signature == other.signature
    }
}
