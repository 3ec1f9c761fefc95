//! Follows the files that the certificates depend on: the revocation lists, and the mesh's roots. While a root is replaced there are two in it for a while:
//! a certificate that is issued anew brings what the file holds then, and with that the proxy trusts
//! peers of both. Waiting for the renewal at half of a certificate's life would refuse those of the
//! new root until then.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use super::assembly;
use crate::config::Settings;
use crate::tls::Store;

/// The largest file of root certificates.
const ROOTS_MAX: u64 = 4 << 20;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Follows the files that the settings name.
pub(super) fn follow_files(settings: &Settings, store: &Arc<Store>) {
    tokio::spawn(store.revocations().clone().follow(LOOK));
    if let Some(file) = assembly::mesh_roots(settings) {
        tokio::spawn(follow(file, LOOK, store.clone()));
    }
}

/// Has all certificates issued anew whenever the file has changed. Never ends.
async fn follow(path: PathBuf, every: Duration, store: Arc<Store>) {
    let renew = || {
        tracing::info!(path = %path.display(), "the mesh's roots have changed: certificates are renewed");
        store.renew_all();
    };
    watch(&path, every, renew).await;
}

async fn watch(path: &Path, every: Duration, mut changed: impl FnMut()) {
    // None: not read yet. What the first certificates bring is what is there then.
    let mut seen = None;
    loop {
        match read(path).await {
            // Perhaps it is just being written.
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => {
                if seen.as_ref().is_some_and(|seen| *seen != bytes) {
                    changed();
                }
                seen = Some(bytes);
            }
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "the mesh's roots cannot be read now");
            }
        }
        tokio::time::sleep(every).await;
    }
}

async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(ROOTS_MAX).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn only_another_content_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root-cert.pem");
        let every = Duration::from_millis(2);
        let changes = Cell::new(0);
        let watching = watch(&path, every, || changes.set(changes.get() + 1));
        let story = async {
            let pause = || tokio::time::sleep(every * 20);
            pause().await;
            for (content, expected) in [
                ("one", 0),
                ("one two", 1),
                ("", 1),
                ("one two", 1),
                ("two", 2),
            ] {
                std::fs::write(&path, content).unwrap();
                pause().await;
                assert_eq!(changes.get(), expected, "after {content:?}");
            }
            std::fs::remove_file(&path).unwrap();
            pause().await;
            std::fs::write(&path, "two").unwrap();
            pause().await;
            assert_eq!(changes.get(), 2);
        };
        tokio::select! {
            () = watching => unreachable!("it never ends"),
            () = story => {}
        }
    }
}
