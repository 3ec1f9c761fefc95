//! The chain that a session's peer was verified with: serial numbers and issuers. Sessions share
//! the issuers.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls_pki_types::SubjectPublicKeyInfoDer;
use smallvec::SmallVec;

/// A certificate's serial number in its DER encoding: 20 bytes at most (RFC 5280, section 4.1.2.2).
pub(super) type Serial = SmallVec<[u8; 20]>;

/// The certificates that a peer was verified with, to look them up in later revocation lists. Empty
/// if no lists are configured.
#[derive(Clone, Default)]
pub struct PeerChain(Option<Arc<[ChainCertificate]>>);

/// One certificate of a chain.
pub(super) struct ChainCertificate {
    pub(super) serial: Serial,
    pub(super) issuer: Arc<CertificateAuthority>,
}

/// The issuer of a certificate.
#[derive(PartialEq, Eq)]
pub(super) struct CertificateAuthority {
    /// The subject, DER without its outer tag.
    pub(super) name: Box<[u8]>,
    pub(super) key: SubjectPublicKeyInfoDer<'static>,
}

/// The issuers of all open sessions, each stored once.
#[derive(Default)]
pub(super) struct CertificateAuthorities(Mutex<Vec<Weak<CertificateAuthority>>>);

impl CertificateAuthorities {
    /// The certificates of a verified path, leaf first.
    pub(super) fn peer_chain(&self, path: &webpki::VerifiedPath<'_>) -> PeerChain {
        let mut certificates = Vec::new();
        let mut serial = path.end_entity().serial();
        for issuer in path.intermediate_certificates() {
            let key = issuer.subject_public_key_info();
            certificates.push(self.certificate(serial, issuer.subject(), key));
            serial = issuer.serial();
        }
        let anchor = path.anchor();
        certificates.push(self.certificate(
            serial,
            &anchor.subject,
            webpki::spki_for_anchor(anchor),
        ));
        PeerChain(Some(certificates.into()))
    }

    fn certificate(
        &self,
        serial: &[u8],
        name: &[u8],
        key: SubjectPublicKeyInfoDer<'static>,
    ) -> ChainCertificate {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |issuer: &Arc<CertificateAuthority>| *issuer.name == *name && issuer.key == key;
        let found = known.iter().filter_map(Weak::upgrade).find(same);
        let issuer = found.unwrap_or_else(|| {
            let issuer = Arc::new(CertificateAuthority {
                name: name.into(),
                key,
            });
            known.retain(|issuer| issuer.strong_count() > 0);
            known.push(Arc::downgrade(&issuer));
            issuer
        });
        ChainCertificate {
            serial: Serial::from_slice(serial),
            issuer,
        }
    }

    /// The number of authorities.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

impl PeerChain {
    /// Whether it is empty, because no lists are configured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.certificates().is_empty()
    }

    pub(super) fn certificates(&self) -> &[ChainCertificate] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl fmt::Debug for PeerChain {
    /// The serial numbers, leaf first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |certificate: &ChainCertificate| {
            certificate
                .serial
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect()
        };
        let serials = self.certificates().iter().map(hex).collect::<Vec<String>>();
        f.debug_tuple("PeerChain").field(&serials).finish()
    }
}
