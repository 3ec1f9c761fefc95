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
use settings::Settings;
use tunnel::tls::Store;

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
        let now = read(path).await.inspect_err(|error| {
            tracing::debug!(%error, path = %path.display(), "the mesh's roots cannot be read now");
        });
        if differs(&mut seen, now) {
            changed();
        }
        tokio::time::sleep(every).await;
    }
}

/// Whether the content has changed since a look that has seen one.
fn differs(seen: &mut Option<Vec<u8>>, now: io::Result<Vec<u8>>) -> bool {
    match now {
        // An empty file is perhaps just being written.
        Ok(bytes) if !bytes.is_empty() => {
            let differs = seen.as_ref().is_some_and(|seen| *seen != bytes);
            *seen = Some(bytes);
            differs
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
    fn only_another_content_counts() {
        let mut seen = None;
        let gone = || Err(io::ErrorKind::NotFound.into());
        for (now, expected) in [
            (gone(), false),
            (Ok("one"), false),
            (Ok("one two"), true),
            (Ok(""), false),
            (Ok("one two"), false),
            (Ok("two"), true),
            (gone(), false),
            (Ok("two"), false),
        ] {
            let case = format!("{now:?} after {seen:?}");
            let now = now.map(|content| content.as_bytes().to_vec());
            assert_eq!(differs(&mut seen, now), expected, "{case}");
        }
    }

    #[tokio::test]
    async fn a_change_of_the_file_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root-cert.pem");
        let every = Duration::from_millis(2);
        let noticed = Cell::new(false);
        let watching = watch(&path, every, || noticed.set(true));
        // When it has had its first look is not known: the content changes until it has noticed.
        let story = async {
            for number in 0.. {
                std::fs::write(&path, format!("root {number}")).unwrap();
                tokio::time::sleep(every).await;
                if noticed.get() {
                    break;
                }
            }
        };
        tokio::select! {
            () = watching => unreachable!("it never ends"),
            () = story => {}
            () = tokio::time::sleep(Duration::from_secs(5)) => panic!("not noticed"),
        }
    }
}
