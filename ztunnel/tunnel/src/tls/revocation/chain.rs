//! The certificates that a session's peer was verified with: their serial numbers, and their
//! issuers, which all sessions share.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls_pki_types::SubjectPublicKeyInfoDer;
use smallvec::SmallVec;

/// A certificate's serial number in its DER encoding: 20 bytes at most (RFC 5280, section 4.1.2.2).
pub(super) type Serial = SmallVec<[u8; 20]>;

/// Identifies the certificates that a peer was verified with, to find out later whether one was
/// revoked. Empty where no lists are configured.
#[derive(Clone, Default)]
pub struct PeerChain(Option<Arc<[Link]>>);

/// One certificate.
pub(super) struct Link {
    pub(super) serial: Serial,
    pub(super) issuer: Arc<Authority>,
}

/// An authority that signs certificates.
#[derive(PartialEq, Eq)]
pub(super) struct Authority {
    /// The subject, DER without its outer tag.
    pub(super) name: Box<[u8]>,
    pub(super) key: SubjectPublicKeyInfoDer<'static>,
}

/// The authorities that open sessions were verified with, each stored once.
#[derive(Default)]
pub(super) struct Authorities(Mutex<Vec<Weak<Authority>>>);

impl Authorities {
    /// Makes the value from a chain, leaf first.
    pub(super) fn note(&self, path: &webpki::VerifiedPath<'_>) -> PeerChain {
        let mut links = Vec::new();
        let mut serial = path.end_entity().serial();
        for issuer in path.intermediate_certificates() {
            let key = issuer.subject_public_key_info();
            links.push(self.link(serial, issuer.subject(), key));
            serial = issuer.serial();
        }
        let anchor = path.anchor();
        links.push(self.link(serial, &anchor.subject, webpki::spki_for_anchor(anchor)));
        PeerChain(Some(links.into()))
    }

    fn link(&self, serial: &[u8], name: &[u8], key: SubjectPublicKeyInfoDer<'static>) -> Link {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |issuer: &Arc<Authority>| *issuer.name == *name && issuer.key == key;
        let found = known.iter().filter_map(Weak::upgrade).find(same);
        let issuer = found.unwrap_or_else(|| {
            let issuer = Arc::new(Authority {
                name: name.into(),
                key,
            });
            known.retain(|issuer| issuer.strong_count() > 0);
            known.push(Arc::downgrade(&issuer));
            issuer
        });
        Link {
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
        self.links().is_empty()
    }

    pub(super) fn links(&self) -> &[Link] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl fmt::Debug for PeerChain {
    /// The serial numbers, leaf first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |link: &Link| {
            link.serial
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect()
        };
        let serials = self.links().iter().map(hex).collect::<Vec<String>>();
        f.debug_tuple("PeerChain").field(&serials).finish()
    }
}
