//! A file of root certificates that may change at run time. While the file cannot be read or is
//! damaged, the last good content stays in use.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, TrustAnchor};

use super::error::IstiodError;

/// The largest file, in bytes: several hundred certificates.
const LIMIT: usize = 1024 * 1024;

/// The file and its last good content.
pub(super) struct RootFile {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    roots: Arc<Roots>,
    /// The last error, so that the same error is logged once.
    last_error: String,
}

/// Root certificates; there is at least one.
pub(super) struct Roots {
    pem: Vec<u8>,
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl RootFile {
    /// Reads the file for the first time.
    pub(super) fn open(path: &Path) -> Result<Self, IstiodError> {
        let roots = Arc::new(Roots::read(path)?);
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(State {
                roots,
                last_error: String::new(),
            }),
        })
    }

    /// The current content of the file, or the last good one. It is the same `Arc` as long as nothing
    /// changes.
    pub(super) fn current(&self) -> Arc<Roots> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match Roots::read(&self.path) {
            Ok(now) => {
                state.last_error.clear();
                if now.pem != state.roots.pem {
                    tracing::info!(path = %self.path.display(), "the root certificates have changed");
                    state.roots = Arc::new(now);
                }
            }
            Err(error) => {
                let text = error.to_string();
                if text != state.last_error {
                    tracing::warn!("the previous root certificates stay in use: {text}");
                    state.last_error = text;
                }
            }
        }
        state.roots.clone()
    }
}

impl Roots {
    fn read(path: &Path) -> Result<Self, IstiodError> {
        let damaged = |why: String| IstiodError::Roots {
            path: path.to_owned(),
            why,
        };
        let mut pem = Vec::new();
        read(path, LIMIT, &mut pem).map_err(|source| IstiodError::Io {
            path: path.to_owned(),
            source,
        })?;
        let certificates = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| damaged(error.to_string()))?;
        let anchors = certificates
            .iter()
            .map(|certificate| Ok(webpki::anchor_from_trusted_cert(certificate)?.to_owned()))
            .collect::<Result<Vec<_>, webpki::Error>>()
            .map_err(|error| damaged(error.to_string()))?;
        if anchors.is_empty() {
            return Err(damaged("the file holds no certificate".to_owned()));
        }
        Ok(Self {
            pem,
            certificates,
            anchors,
        })
    }

    pub(super) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        self.certificates.clone()
    }

    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

/// Appends a file of at most `limit` bytes.
pub(super) fn read(path: &Path, limit: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
    let most = u64::try_from(limit).unwrap_or(u64::MAX);
    let file = File::open(path)?;
    if file.take(most.saturating_add(1)).read_to_end(bytes)? > limit {
        let why = format!("the file is larger than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(())
}
