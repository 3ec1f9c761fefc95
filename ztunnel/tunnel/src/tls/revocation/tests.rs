//! Revocation lists: how files are read, which certificates a list applies to, and the effect on
//! handshakes and on open sessions.

use rustls_pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::io::DuplexStream;

use super::super::testing::{Leaf, TestCa, handshake_pair, identity};
use super::super::{Credentials, Error, Issued, Stream};
use super::*;

const CAPACITY: usize = 64 * 1024;
const HOUR: Duration = Duration::from_secs(3600);

/// A directory with a file of lists.
struct ListFile {
    directory: TempDir,
}

impl ListFile {
    fn empty() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn with(content: impl AsRef<[u8]>) -> Self {
        let file = Self::empty();
        file.write(content);
        file
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("crl.pem")
    }

    fn write(&self, content: impl AsRef<[u8]>) {
        fs::write(self.path(), content).unwrap();
    }

    fn open(&self) -> Revocations {
        Revocations::open(&self.path()).unwrap()
    }
}

fn list(ca: &TestCa, revoked: &[&CertificateDer<'_>]) -> String {
    let list = ca.revoke(revoked, SystemTime::now() + HOUR);
    list.pem().unwrap()
}

fn issue(ca: &TestCa, account: &str) -> Issued {
    ca.issue(&Leaf::of(&identity(account)))
}

fn credentials(account: &str, issued: Issued, revocations: &Revocations) -> Credentials {
    Credentials::new(&identity(account), issued, revocations).unwrap()
}

type BothResults = (
    Result<Stream<DuplexStream>, Error>,
    Result<Stream<DuplexStream>, Error>,
);

/// The handshake of a client `a` with a server `b`; each uses its own lists.
async fn handshake(client: (Issued, &Revocations), server: (Issued, &Revocations)) -> BothResults {
    let client = credentials("a", client.0, client.1);
    let server = credentials("b", server.0, server.1);
    let (local, remote) = tokio::io::duplex(CAPACITY);
    let expected = [identity("b")];
    tokio::join!(
        async {
            let mut local = super::super::connect(local, &client, &expected).await?;
            let flushed = tokio::io::AsyncWriteExt::flush(&mut local).await;
            // A server that refuses may have closed already.
            drop(flushed);
            Ok(local)
        },
        super::super::accept(remote, &server)
    )
}

#[tokio::test]
async fn a_server_refuses_a_revoked_client_with_an_alert() {
    let ca = TestCa::new();
    let (a, b) = (issue(&ca, "a"), issue(&ca, "b"));
    let file = ListFile::with(list(&ca, &[&a.chain[0]]));
    let (local, remote) = handshake((a, &Revocations::default()), (b, &file.open())).await;
    assert_eq!(remote.err().unwrap().reason(), "cert_revoked");
    let alert = tokio::io::AsyncReadExt::read_u8(&mut local.unwrap())
        .await
        .unwrap_err();
    assert!(alert.to_string().contains("CertificateRevoked"), "{alert}");
    assert!(alert.to_string().contains("revocation list"), "{alert}");
}

#[tokio::test]
async fn a_client_refuses_a_revoked_server_with_an_alert() {
    let ca = TestCa::new();
    let (a, b) = (issue(&ca, "a"), issue(&ca, "b"));
    let file = ListFile::with(list(&ca, &[&b.chain[0]]));
    let (local, remote) = handshake((a, &file.open()), (b, &Revocations::default())).await;
    let error = local.err().unwrap();
    assert_eq!(error.reason(), "cert_revoked");
    assert_eq!(error.fault(), super::super::Fault::Upstream);
    let alert = remote.err().unwrap();
    assert!(alert.to_string().contains("CertificateRevoked"), "{alert}");
}

#[tokio::test]
async fn a_certificate_that_is_not_listed_is_accepted() {
    let ca = TestCa::new();
    let other = issue(&ca, "a");
    let file = ListFile::with(list(&ca, &[&other.chain[0]]));
    let both = file.open();
    let (a, b) = (issue(&ca, "a"), issue(&ca, "b"));
    let (local, remote) = handshake((a, &both), (b, &both)).await;
    let (local, remote) = (local.unwrap(), remote.unwrap());
    assert_eq!(
        (local.peer(), remote.peer()),
        (&identity("b"), &identity("a"))
    );
}

#[tokio::test]
async fn intermediate_certificates_are_looked_up() {
    let root = TestCa::new();
    let (good, bad) = (root.intermediate("good"), root.intermediate("bad"));
    let file = ListFile::with(list(&root, &[&issue(&bad, "x").chain[1]]));
    let lists = file.open();
    for (ca, allowed) in [(&good, true), (&bad, false)] {
        let (a, b) = (issue(ca, "a"), issue(&good, "b"));
        let (_near, remote) = handshake((a, &Revocations::default()), (b, &lists)).await;
        match remote {
            Ok(_) => assert!(allowed),
            Err(error) => assert!(!allowed && error.reason() == "cert_revoked", "{error}"),
        }
    }
    // The leaf's own authority may have a list as well: one file may hold both.
    let leaf = issue(&good, "a");
    let mut both = list(&root, &[]);
    both.push_str(&list(&good, &[&leaf.chain[0]]));
    file.write(both);
    assert_eq!(lists.reload().unwrap(), Reload::Changed);
    let (_near, remote) =
        handshake((leaf, &Revocations::default()), (issue(&good, "b"), &lists)).await;
    assert_eq!(remote.err().unwrap().reason(), "cert_revoked");
}

#[tokio::test]
async fn a_list_applies_only_to_the_authority_that_signed_it() {
    // Two roots of one name, as during a root rotation; and a list of an unrelated authority of
    // that name.
    let (old, new) = (TestCa::new(), TestCa::new());
    let (from_old, from_new) = (issue(&old, "a"), issue(&new, "a"));
    let (b_old, b_new) = (issue(&old, "b"), issue(&new, "b"));
    let mut both = list(&old, &[&from_new.chain[0]]);
    both.push_str(&list(&new, &[&from_old.chain[0]]));
    let lists = ListFile::with(both).open();
    for (a, b) in [(from_old, b_old), (from_new, b_new)] {
        let (local, remote) = handshake((a, &lists), (b, &lists)).await;
        assert!(local.is_ok() && remote.is_ok());
    }
    let (a, b) = (issue(&new, "a"), issue(&new, "b"));
    let mut both = list(&old, &[]);
    both.push_str(&list(&new, &[&a.chain[0]]));
    let lists = ListFile::with(both).open();
    let (_near, remote) = handshake((a, &Revocations::default()), (b, &lists)).await;
    assert_eq!(remote.err().unwrap().reason(), "cert_revoked");
}

#[tokio::test]
async fn a_later_list_revokes_an_open_session() {
    let ca = TestCa::new();
    let file = ListFile::with(list(&ca, &[]));
    let lists = file.open();
    let (a, b) = (issue(&ca, "a"), issue(&ca, "b"));
    let revoked = list(&ca, &[&a.chain[0]]);
    let (local, remote) = handshake((a, &lists), (b, &lists)).await;
    let (local, remote) = (local.unwrap(), remote.unwrap());
    assert!(!lists.is_revoked(remote.peer_chain()));
    let mut revoked_peer = Box::pin(lists.revoked(remote.peer_chain()));
    let mut valid_peer = Box::pin(lists.revoked(local.peer_chain()));
    let soon = Duration::from_millis(20);
    assert!(tokio::time::timeout(soon, &mut revoked_peer).await.is_err());
    let mut version = lists.subscribe();

    file.write(revoked);
    assert_eq!(lists.reload().unwrap(), Reload::Changed);
    assert!(version.has_changed().unwrap());
    version.mark_unchanged();
    tokio::time::timeout(soon, &mut revoked_peer).await.unwrap();
    assert!(lists.is_revoked(remote.peer_chain()));
    assert!(!lists.is_revoked(local.peer_chain()));
    assert!(tokio::time::timeout(soon, &mut valid_peer).await.is_err());
    // A call after the revocation resolves at once.
    lists.revoked(remote.peer_chain()).await;
    assert_eq!(lists.reload().unwrap(), Reload::Unchanged);
    assert!(!version.has_changed().unwrap());
}

#[tokio::test]
async fn without_lists_a_session_keeps_no_chain() {
    let ca = TestCa::new();
    let (client, server) = (
        ca.credentials(&identity("a")),
        ca.credentials(&identity("b")),
    );
    let (local, _far) = handshake_pair(&client, &server, &[identity("b")], CAPACITY).await;
    let local = local.unwrap();
    assert!(local.peer_chain().certificates().is_empty());
    assert!(!Revocations::default().is_revoked(local.peer_chain()));
    assert_eq!(size_of::<PeerChain>(), 16);
    assert!(size_of::<ChainCertificate>() <= 48);
}

#[tokio::test]
async fn sessions_share_their_issuers() {
    let ca = TestCa::new();
    let lists = ListFile::with(list(&ca, &[])).open();
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let (a, b) = (issue(&ca, "a"), issue(&ca, "b"));
        let (local, _far) = handshake((a, &lists), (b, &lists)).await;
        sessions.push(local.unwrap());
    }
    let issuer = |at: usize| &sessions[at].peer_chain().certificates()[0].issuer;
    assert!(Arc::ptr_eq(issuer(0), issuer(1)) && Arc::ptr_eq(issuer(1), issuer(2)));
    assert_eq!(lists.shared.authorities.len(), 1);
}

#[test]
fn an_invalid_file_fails_at_startup() {
    let ca = TestCa::new();
    let good = list(&ca, &[]);
    let der = ca.revoke(&[], SystemTime::now() + HOUR);
    let half = &good[..good.len() / 2];
    let damaged = good.replacen("MI", "QI", 1);
    let cases: [(&[u8], &str); 6] = [
        (b"nonsense", "crl_empty"),
        (half.as_bytes(), "crl_unusable"),
        (damaged.as_bytes(), "crl_unusable"),
        (&der.der()[..40], "crl_unusable"),
        (&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], "crl_unusable"),
        (&[der.der().as_ref(), b"x"].concat(), "crl_unusable"),
    ];
    for (content, reason) in cases {
        let file = ListFile::with(content);
        let error = Revocations::open(&file.path()).unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains("crl.pem"), "{error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let error = Revocations::open(directory.path()).unwrap_err();
    assert_eq!(error.reason(), "crl_io");
}

#[test]
fn pem_and_der_are_supported() {
    let ca = TestCa::new();
    let revoked = issue(&ca, "a");
    let made = ca.revoke(&[&revoked.chain[0]], SystemTime::now() + HOUR);
    for content in [made.pem().unwrap().into_bytes(), made.der().to_vec()] {
        let lists = ListFile::with(content).open();
        let loaded = lists.shared.lists.load();
        assert_eq!((loaded.len(), loaded[0].revoked_count()), (1, 1));
    }
}

#[test]
fn more_lists_than_the_limit_are_refused() {
    let one = list(&TestCa::new(), &[]);
    let file = ListFile::with(one.repeat(257));
    let error = Revocations::open(&file.path()).unwrap_err();
    assert_eq!(error.reason(), "crl_too_many");
}

#[tokio::test]
async fn the_lists_stay_in_force_if_the_file_becomes_invalid_or_is_removed() {
    let ca = TestCa::new();
    let (a, b) = (issue(&ca, "a"), issue(&ca, "b"));
    let good = list(&ca, &[&a.chain[0]]);
    let file = ListFile::with(&good);
    let lists = file.open();
    for (bad, reason) in [
        (" \n", "crl_gone"),
        ("x", "crl_empty"),
        (&good[..200], "crl_unusable"),
    ] {
        file.write(bad);
        assert_eq!(lists.reload().unwrap_err().reason(), reason);
    }
    fs::remove_file(file.path()).unwrap();
    assert_eq!(lists.reload().unwrap_err().reason(), "crl_gone");
    let (_near, remote) = handshake((a, &Revocations::default()), (b, &lists)).await;
    assert_eq!(remote.err().unwrap().reason(), "cert_revoked");
}

#[test]
fn an_empty_file_is_treated_as_missing() {
    let file = ListFile::with("\n");
    let lists = file.open();
    assert!(lists.shared.lists.load().is_empty());
    file.write(list(&TestCa::new(), &[]));
    assert_eq!(lists.reload().unwrap(), Reload::Changed);
}

#[tokio::test]
async fn changes_of_the_file_are_loaded() {
    let ca = TestCa::new();
    let (a, b) = (issue(&ca, "a"), issue(&ca, "b"));
    // The file does not exist yet: an optional ConfigMap.
    let file = ListFile::empty();
    let lists = file.open();
    let watcher = tokio::spawn(lists.clone().watch_file(Duration::from_millis(5)));
    let mut version = lists.subscribe();
    file.write("half a li");
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!version.has_changed().unwrap());
    // Replaced as Kubernetes does it: with a link to another directory.
    let next = file.directory.path().join("..data");
    fs::create_dir(&next).unwrap();
    fs::write(next.join("crl.pem"), list(&ca, &[&a.chain[0]])).unwrap();
    let link = file.directory.path().join("link");
    std::os::unix::fs::symlink(next.join("crl.pem"), &link).unwrap();
    fs::rename(link, file.path()).unwrap();
    let changed = tokio::time::timeout(Duration::from_secs(5), version.changed()).await;
    changed.unwrap().unwrap();
    let (_near, remote) = handshake((a, &Revocations::default()), (b, &lists)).await;
    assert_eq!(remote.err().unwrap().reason(), "cert_revoked");
    watcher.abort();
}

#[tokio::test]
async fn a_list_past_its_next_update_stays_in_force() {
    let ca = TestCa::new();
    let (a, b) = (issue(&ca, "a"), issue(&ca, "b"));
    let old = ca.revoke(&[&a.chain[0]], SystemTime::now() - HOUR);
    let lists = ListFile::with(old.pem().unwrap()).open();
    assert!(lists.warn_of_overdue_lists());
    let (_near, remote) = handshake((a, &Revocations::default()), (b, &lists)).await;
    assert_eq!(remote.err().unwrap().reason(), "cert_revoked");
    let (a, b) = (issue(&ca, "a"), issue(&ca, "b"));
    let (local, remote) = handshake((a, &lists), (b, &lists)).await;
    assert!(local.is_ok() && remote.is_ok());
}
