//! Follows the files that the certificates depend on: the revocation lists and the mesh's roots.
//!
//! During a root rotation the roots file holds both roots. A newly issued certificate comes with
//! the current content of the file, and then the proxy trusts peers of both roots. So a change of
//! the file renews all certificates: without that, peers of the new root would be refused until the
//! regular renewal at half of a certificate's life.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use super::assembly;
use settings::Settings;
use tunnel::tls::Store;

/// The most bytes that are read of the roots file.
const ROOTS_MAX: u64 = 4 << 20;

/// How often the files are read.
const INTERVAL: Duration = Duration::from_secs(5);

/// Follows the files that the settings name.
pub(super) fn follow_files(settings: &Settings, store: &Arc<Store>) {
    tokio::spawn(store.revocations().clone().watch_file(INTERVAL));
    if let Some(file) = assembly::mesh_roots(settings) {
        tokio::spawn(follow(file, INTERVAL, store.clone()));
    }
}

/// Renews all certificates whenever the file has changed. Never ends.
async fn follow(path: PathBuf, interval: Duration, store: Arc<Store>) {
    let renew = || {
        tracing::info!(path = %path.display(), "the mesh's roots have changed: renewing all certificates");
        store.renew_all();
    };
    watch(&path, interval, renew).await;
}

async fn watch(path: &Path, interval: Duration, mut changed: impl FnMut()) {
    // None: not read yet. The first certificates come with the file's content at that time.
    let mut last = None;
    loop {
        let read = read(path).await.inspect_err(|error| {
            tracing::debug!(%error, path = %path.display(), "cannot read the mesh's roots");
        });
        if has_changed(&mut last, read) {
            changed();
        }
        tokio::time::sleep(interval).await;
    }
}

/// Whether the content differs from the last one that could be read, which it replaces.
fn has_changed(last: &mut Option<Vec<u8>>, read: io::Result<Vec<u8>>) -> bool {
    match read {
        // An empty file may be in the middle of a write.
        Ok(bytes) if !bytes.is_empty() => {
            let changed = last.as_ref().is_some_and(|last| *last != bytes);
            *last = Some(bytes);
            changed
        }
        _ => false,
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

    #[test]
    fn only_new_content_is_a_change() {
        let mut last = None;
        let gone = || Err(io::ErrorKind::NotFound.into());
        for (read, expected) in [
            (gone(), false),
            (Ok("one"), false),
            (Ok("one two"), true),
            (Ok(""), false),
            (Ok("one two"), false),
            (Ok("two"), true),
            (gone(), false),
            (Ok("two"), false),
        ] {
            let case = format!("{read:?} after {last:?}");
            let read = read.map(|content| content.as_bytes().to_vec());
            assert_eq!(has_changed(&mut last, read), expected, "{case}");
        }
    }

    #[tokio::test]
    async fn a_change_of_the_file_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root-cert.pem");
        let interval = Duration::from_millis(2);
        let noticed = Cell::new(false);
        let watching = watch(&path, interval, || noticed.set(true));
        // The time of the first read is unknown: the content changes until a change is noticed.
        let writing = async {
            for number in 0.. {
                std::fs::write(&path, format!("root {number}")).unwrap();
                tokio::time::sleep(interval).await;
                if noticed.get() {
                    break;
                }
            }
        };
        tokio::select! {
            () = watching => unreachable!("it never ends"),
            () = writing => {}
            () = tokio::time::sleep(Duration::from_secs(5)) => panic!("no change was noticed"),
        }
    }
}
