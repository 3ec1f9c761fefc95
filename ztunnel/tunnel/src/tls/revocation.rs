//! Certificate revocation lists (CRLs) from a file.
//!
//! Every handshake looks up each certificate of the peer's chain, the leaf and the intermediates.
//! An established session keeps a [`PeerChain`] of a few bytes, so that its owner can end it when a
//! later list revokes a certificate of the chain ([`Revocations::revoked`]). A list applies to an
//! authority if it has the authority's name and a signature by its key: during a root rotation, two
//! authorities with the same name may each have a list.
//!
//! Decisions:
//! - A certificate whose issuer has no list is allowed: many meshes have no list.
//! - A list that is past its `nextUpdate` stays in force, with a warning: revoked certificates stay
//!   revoked, and a list that is no longer updated does not stop the mesh.
//! - If the file cannot be read or parsed at startup, startup fails. Later the last valid lists
//!   stay in force, also when the file disappears. A missing file may appear later: an optional
//!   ConfigMap is mounted when it is created.
//! - The scope of a list (RFC 5280, section 5.2.5) is ignored: an authority issues a serial number
//!   once, so a number in any of its lists is revoked.

mod chain;
mod error;
mod list;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use self::chain::PeerChain;
use self::chain::{CertificateAuthorities, ChainCertificate};
pub use self::error::RevocationError;
pub use self::list::RevocationList;

/// The limit of the file's size, in bytes; a list of 100,000 certificates has 4 MB.
const FILE_LIMIT: u64 = 32 * 1024 * 1024;

/// The revocation lists in force. Clones share them; the default value never has lists.
#[derive(Clone, Default)]
pub struct Revocations {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// `None`: no file is configured.
    path: Option<PathBuf>,
    lists: ArcSwap<Vec<RevocationList>>,
    authorities: CertificateAuthorities,
    version: watch::Sender<u64>,
}

/// Whether reading the file changed the lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// The lists are the same as before.
    Unchanged,
    /// Other lists are in force now.
    Changed,
}

impl Revocations {
    /// Reads the lists of a file: PEM with one or more, or DER with one. The file may be missing or
    /// empty.
    ///
    /// # Errors
    /// When the file exists but cannot be read, or when it has no valid list.
    pub fn open(path: &Path) -> Result<Self, RevocationError> {
        let this = Self {
            shared: Arc::new(Shared {
                path: Some(path.to_owned()),
                ..Shared::default()
            }),
        };
        this.reload()?;
        Ok(this)
    }

    /// Reads the file again. On failure, the lists in force stay.
    ///
    /// # Errors
    /// As [`Self::open`], and when a file that had lists is missing or empty.
    pub fn reload(&self) -> Result<Reload, RevocationError> {
        let Some(path) = &self.shared.path else {
            return Ok(Reload::Unchanged);
        };
        let read = read(path);
        // The file may be empty at first, or may be being written.
        let is_missing_or_empty = match &read {
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(bytes) => bytes.trim_ascii().is_empty(),
        };
        if is_missing_or_empty {
            if !self.shared.lists.load().is_empty() {
                return Err(RevocationError::Gone { path: path.clone() });
            }
            tracing::warn!(path = %path.display(), "the file of revocation lists is missing or empty: no certificate is revoked");
            return Ok(Reload::Unchanged);
        }
        let bytes = read.map_err(|source| RevocationError::Io {
            path: path.clone(),
            source,
        })?;
        let lists = RevocationList::parse_all(path, &bytes)?;
        if self.shared.lists.load().iter().eq(lists.iter()) {
            return Ok(Reload::Unchanged);
        }
        let revoked: usize = lists.iter().map(RevocationList::revoked_count).sum();
        tracing::info!(path = %path.display(), lists = lists.len(), revoked, "revocation lists loaded");
        self.shared.lists.store(Arc::new(lists));
        self.shared.version.send_modify(|version| *version += 1);
        Ok(Reload::Changed)
    }

    /// Checks the file at that interval and reads it when it has changed. Returns at once when no
    /// file is configured, else never.
    pub async fn watch_file(self, every: Duration) {
        let Some(path) = self.shared.path.clone() else {
            return;
        };
        let (mut last_state, mut last_error, mut warned) = (None, String::new(), None);
        loop {
            let state = FileState::of(&path);
            if last_state != Some(state) {
                last_state = Some(state);
                match self.reload() {
                    Ok(_) => last_error.clear(),
                    Err(error) => {
                        // The file may have been incomplete: read it again even if its state does
                        // not change.
                        last_state = None;
                        let text = error.to_string();
                        if text != last_error {
                            tracing::error!(
                                "cannot load the revocation lists, the previous ones stay in force: {text}"
                            );
                            last_error = text;
                        }
                    }
                }
            }
            let version = *self.shared.version.borrow();
            if warned != Some(version) && self.warn_of_overdue_lists() {
                warned = Some(version);
            }
            tokio::time::sleep(every).await;
        }
    }

    /// Notifies when the lists change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    /// Whether a certificate of the chain is revoked by the lists in force.
    #[must_use]
    pub fn is_revoked(&self, chain: &PeerChain) -> bool {
        let lists = self.shared.lists.load();
        let revoked = |certificate: &ChainCertificate| {
            let revokes = |list: &&RevocationList| {
                list.revokes(&certificate.serial, &certificate.issuer.name)
            };
            lists
                .iter()
                .filter(revokes)
                .any(|list| list.is_signed_by(&certificate.issuer))
        };
        chain.certificates().iter().any(revoked)
    }

    /// Resolves when a certificate of the chain is revoked, at once if it is already. Never for an
    /// empty chain, which was made before lists were configured.
    pub fn revoked(&self, chain: &PeerChain) -> impl Future<Output = ()> + Send + use<> {
        let (this, chain) = (self.clone(), chain.clone());
        let version = (!chain.certificates().is_empty()).then(|| self.subscribe());
        async move {
            if let Some(mut version) = version {
                loop {
                    version.borrow_and_update();
                    if this.is_revoked(&chain) {
                        return;
                    }
                    if version.changed().await.is_err() {
                        break;
                    }
                }
            }
            std::future::pending().await
        }
    }

    /// Whether a file is configured.
    pub(super) fn are_configured(&self) -> bool {
        self.shared.path.is_some()
    }

    /// The certificates of a chain that webpki has accepted; empty if no file is configured.
    pub(super) fn peer_chain(&self, path: &webpki::VerifiedPath<'_>) -> PeerChain {
        if self.are_configured() {
            self.shared.authorities.peer_chain(path)
        } else {
            PeerChain::default()
        }
    }

    /// Logs the lists that are past their `nextUpdate`. Returns whether there are any.
    fn warn_of_overdue_lists(&self) -> bool {
        let now = SystemTime::now();
        let lists = self.shared.lists.load();
        let mut overdue = lists
            .iter()
            .filter(|list| list.is_overdue_at(now))
            .peekable();
        let any = overdue.peek().is_some();
        for list in overdue {
            tracing::warn!(
                issuer = list.issuer(),
                "a revocation list is past its nextUpdate and stays in force: publish a new one"
            );
        }
        any
    }
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations")
            .field("path", &self.shared.path)
            .field("lists", &self.shared.lists.load().len())
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let length = File::open(path)?
        .take(FILE_LIMIT + 1)
        .read_to_end(&mut bytes)?;
    if u64::try_from(length).is_ok_and(|length| length <= FILE_LIMIT) {
        return Ok(bytes);
    }
    let why = format!("the file is larger than {FILE_LIMIT} bytes");
    Err(io::Error::new(io::ErrorKind::FileTooLarge, why))
}

/// The metadata of the file; it changes with the contents. `None`: the file does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileState(Option<FileMetadata>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileMetadata {
    inode: u64,
    length: u64,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, i64),
    /// Seconds and nanoseconds since 1970.
    changed: (i64, i64),
}

impl FileState {
    /// Follows symbolic links.
    fn of(path: &Path) -> Self {
        Self(fs::metadata(path).ok().map(|found| FileMetadata {
            inode: found.ino(),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }))
    }
}

#[cfg(test)]
mod tests;
