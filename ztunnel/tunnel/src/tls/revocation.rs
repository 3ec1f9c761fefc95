//! Certificates that were revoked before they expired: the revocation lists (CRLs) of a file.
//!
//! Every handshake looks up each certificate of the peer's chain, the leaf and the authorities
//! above it. An established session keeps a [`PeerChain`] of a few bytes, so that its owner can end
//! it when a later list revokes it ([`Revocations::revoked`]). A list applies to an authority if it
//! has the authority's name and a signature by its key: during a root rotation, two authorities of
//! one name may each have a list.
//!
//! Decisions:
//! - A certificate whose issuer has no list is allowed: a mesh may run for long before its first
//!   list exists.
//! - A list that is past its `nextUpdate` stays in force, with a warning: revoked certificates stay
//!   revoked, and a publisher that is stuck does not stop the mesh.
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
use self::chain::{Authorities, Link};
pub use self::error::RevocationError;
pub use self::list::RevocationList;

/// The largest file that is read; a list of a hundred thousand certificates has 4 MB.
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
    authorities: Authorities,
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
    /// Reads the lists of a file: PEM with one or more, or DER with one.
    ///
    /// # Errors
    /// When the file is there but cannot be read or has no usable list.
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
    /// As [`Self::open`], and when a file that was there is gone.
    pub fn reload(&self) -> Result<Reload, RevocationError> {
        let Some(path) = &self.shared.path else {
            return Ok(Reload::Unchanged);
        };
        let read = read(path);
        // The file may be empty at first, or may just be being written.
        let nothing = match &read {
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(bytes) => bytes.trim_ascii().is_empty(),
        };
        if nothing {
            if !self.shared.lists.load().is_empty() {
                return Err(RevocationError::Gone { path: path.clone() });
            }
            tracing::warn!(path = %path.display(), "no revocation list yet");
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
        let revoked: usize = lists.iter().map(RevocationList::revoked).sum();
        tracing::info!(path = %path.display(), lists = lists.len(), revoked, "revocation lists read");
        self.shared.lists.store(Arc::new(lists));
        self.shared.version.send_modify(|version| *version += 1);
        Ok(Reload::Changed)
    }

    /// Checks the file at that interval and reads it when it has changed. Returns at once when no
    /// file is configured, else never.
    pub async fn follow(self, every: Duration) {
        let Some(path) = self.shared.path.clone() else {
            return;
        };
        let (mut seen, mut complaint, mut warned) = (None, String::new(), None);
        loop {
            let now = stamp(&path);
            if seen != Some(now) {
                seen = Some(now);
                match self.reload() {
                    Ok(_) => complaint.clear(),
                    Err(error) => {
                        // The file may have been incomplete: read again even if it does not change.
                        seen = None;
                        let text = error.to_string();
                        if text != complaint {
                            tracing::error!("the last good revocation lists stay in force: {text}");
                            complaint = text;
                        }
                    }
                }
            }
            let version = *self.shared.version.borrow();
            if warned != Some(version) && self.warn_of_old_lists() {
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
        let revoked = |link: &Link| {
            let named = |list: &&RevocationList| list.names(&link.serial, &link.issuer.name);
            lists
                .iter()
                .filter(named)
                .any(|list| list.is_signed_by(&link.issuer))
        };
        chain.links().iter().any(revoked)
    }

    /// Resolves when a certificate of the chain is revoked, at once if it is already. Never for an
    /// empty chain, which was made before lists were configured.
    pub fn revoked(&self, chain: &PeerChain) -> impl Future<Output = ()> + Send + use<> {
        let (this, chain) = (self.clone(), chain.clone());
        let version = (!chain.links().is_empty()).then(|| self.subscribe());
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

    /// The part of a chain to keep after webpki accepted it.
    pub(super) fn note(&self, path: &webpki::VerifiedPath<'_>) -> PeerChain {
        if self.are_configured() {
            self.shared.authorities.note(path)
        } else {
            PeerChain::default()
        }
    }

    /// Logs which lists are past their `nextUpdate`; returns whether there are any.
    fn warn_of_old_lists(&self) -> bool {
        let now = SystemTime::now();
        let lists = self.shared.lists.load();
        let mut old = lists.iter().filter(|list| list.is_old_at(now)).peekable();
        let any = old.peek().is_some();
        for list in old {
            tracing::warn!(
                issuer = list.issuer(),
                "a revocation list is past its next update; it stays in force"
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
    let why = format!("it is larger than {FILE_LIMIT} bytes");
    Err(io::Error::new(io::ErrorKind::FileTooLarge, why))
}

/// Changes with the contents: inode, length and both times, with links followed. `None` for a file
/// that does not exist.
fn stamp(path: &Path) -> Option<(u64, u64, i64, i64, i64, i64)> {
    let found = fs::metadata(path).ok()?;
    Some((
        found.ino(),
        found.len(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ))
}

#[cfg(test)]
mod tests;
