//! Revocation lists: how files are read, which certificates a list applies to, and the effect on
//! handshakes and on open sessions.

use rustls_pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::io::DuplexStream;

use super::super::testing::{Authority, Leaf, identity, shake};
use super::super::{Credentials, Error, Issued, Stream};
use super::*;

const ROOM: usize = 64 * 1024;
const HOUR: Duration = Duration::from_secs(3600);

/// A directory with a file of lists.
struct Place {
    directory: TempDir,
}

impl Place {
    fn empty() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn with(content: impl AsRef<[u8]>) -> Self {
        let place = Self::empty();
        place.write(content);
        place
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

fn list(authority: &Authority, revoked: &[&CertificateDer<'_>]) -> String {
    let list = authority.revoke(revoked, SystemTime::now() + HOUR);
    list.pem().unwrap()
}

fn issue(authority: &Authority, account: &str) -> Issued {
    authority.issue(&Leaf::of(&identity(account)))
}

fn credentials(account: &str, issued: Issued, revocations: &Revocations) -> Credentials {
    Credentials::new(&identity(account), issued, revocations).unwrap()
}

type Ends = (
    Result<Stream<DuplexStream>, Error>,
    Result<Stream<DuplexStream>, Error>,
);

/// A client `a` and a server `b` shake hands; each uses its own lists.
async fn meet(client: (Issued, &Revocations), server: (Issued, &Revocations)) -> Ends {
    let client = credentials("a", client.0, client.1);
    let server = credentials("b", server.0, server.1);
    let (near, far) = tokio::io::duplex(ROOM);
    let expected = [identity("b")];
    tokio::join!(
        async {
            let mut near = super::super::connect(near, &client, &expected).await?;
            let flushed = tokio::io::AsyncWriteExt::flush(&mut near).await;
            // A server that refuses may have closed already.
            drop(flushed);
            Ok(near)
        },
        super::super::accept(far, &server)
    )
}

#[tokio::test]
async fn a_server_refuses_a_client_that_is_revoked_and_says_so() {
    let authority = Authority::new();
    let (a, b) = (issue(&authority, "a"), issue(&authority, "b"));
    let place = Place::with(list(&authority, &[&a.chain[0]]));
    let (near, far) = meet((a, &Revocations::default()), (b, &place.open())).await;
    assert_eq!(far.err().unwrap().reason(), "cert_revoked");
    let told = tokio::io::AsyncReadExt::read_u8(&mut near.unwrap())
        .await
        .unwrap_err();
    assert!(told.to_string().contains("CertificateRevoked"), "{told}");
    assert!(told.to_string().contains("revocation list"), "{told}");
}

#[tokio::test]
async fn a_client_refuses_a_server_that_is_revoked_and_says_so() {
    let authority = Authority::new();
    let (a, b) = (issue(&authority, "a"), issue(&authority, "b"));
    let place = Place::with(list(&authority, &[&b.chain[0]]));
    let (near, far) = meet((a, &place.open()), (b, &Revocations::default())).await;
    let error = near.err().unwrap();
    assert_eq!(error.reason(), "cert_revoked");
    assert_eq!(error.fault(), super::super::Fault::Upstream);
    let told = far.err().unwrap();
    assert!(told.to_string().contains("CertificateRevoked"), "{told}");
}

#[tokio::test]
async fn who_is_not_on_the_list_is_let_in() {
    let authority = Authority::new();
    let other = issue(&authority, "a");
    let place = Place::with(list(&authority, &[&other.chain[0]]));
    let both = place.open();
    let (a, b) = (issue(&authority, "a"), issue(&authority, "b"));
    let (near, far) = meet((a, &both), (b, &both)).await;
    let (near, far) = (near.unwrap(), far.unwrap());
    assert_eq!((near.peer(), far.peer()), (&identity("b"), &identity("a")));
}

#[tokio::test]
async fn an_authority_in_between_is_looked_up_too() {
    let root = Authority::new();
    let (good, bad) = (root.below("good"), root.below("bad"));
    let place = Place::with(list(&root, &[&issue(&bad, "x").chain[1]]));
    let lists = place.open();
    for (authority, allowed) in [(&good, true), (&bad, false)] {
        let (a, b) = (issue(authority, "a"), issue(&good, "b"));
        let (_near, far) = meet((a, &Revocations::default()), (b, &lists)).await;
        match far {
            Ok(_) => assert!(allowed),
            Err(error) => assert!(!allowed && error.reason() == "cert_revoked", "{error}"),
        }
    }
    // The leaf's own authority may have a list as well: one file may hold both.
    let leaf = issue(&good, "a");
    let mut both = list(&root, &[]);
    both.push_str(&list(&good, &[&leaf.chain[0]]));
    place.write(both);
    assert_eq!(lists.reload().unwrap(), Reload::Changed);
    let (_near, far) = meet((leaf, &Revocations::default()), (issue(&good, "b"), &lists)).await;
    assert_eq!(far.err().unwrap().reason(), "cert_revoked");
}

#[tokio::test]
async fn a_list_counts_only_for_whoever_signed_it() {
    // Two roots of one name, as during a root rotation; and a list of an unrelated authority of
    // that name.
    let (old, new) = (Authority::new(), Authority::new());
    let (from_old, from_new) = (issue(&old, "a"), issue(&new, "a"));
    let (b_old, b_new) = (issue(&old, "b"), issue(&new, "b"));
    let mut both = list(&old, &[&from_new.chain[0]]);
    both.push_str(&list(&new, &[&from_old.chain[0]]));
    let lists = Place::with(both).open();
    for (a, b) in [(from_old, b_old), (from_new, b_new)] {
        let (near, far) = meet((a, &lists), (b, &lists)).await;
        assert!(near.is_ok() && far.is_ok());
    }
    let (a, b) = (issue(&new, "a"), issue(&new, "b"));
    let mut both = list(&old, &[]);
    both.push_str(&list(&new, &[&a.chain[0]]));
    let lists = Place::with(both).open();
    let (_near, far) = meet((a, &Revocations::default()), (b, &lists)).await;
    assert_eq!(far.err().unwrap().reason(), "cert_revoked");
}

#[tokio::test]
async fn an_open_session_learns_of_a_later_list() {
    let authority = Authority::new();
    let place = Place::with(list(&authority, &[]));
    let lists = place.open();
    let (a, b) = (issue(&authority, "a"), issue(&authority, "b"));
    let revoked = list(&authority, &[&a.chain[0]]);
    let (near, far) = meet((a, &lists), (b, &lists)).await;
    let (near, far) = (near.unwrap(), far.unwrap());
    assert!(!lists.is_revoked(far.peer_chain()));
    let mut told = Box::pin(lists.revoked(far.peer_chain()));
    let mut not_told = Box::pin(lists.revoked(near.peer_chain()));
    let soon = Duration::from_millis(20);
    assert!(tokio::time::timeout(soon, &mut told).await.is_err());
    let mut version = lists.subscribe();

    place.write(revoked);
    assert_eq!(lists.reload().unwrap(), Reload::Changed);
    assert!(version.has_changed().unwrap());
    version.mark_unchanged();
    tokio::time::timeout(soon, &mut told).await.unwrap();
    assert!(lists.is_revoked(far.peer_chain()));
    assert!(!lists.is_revoked(near.peer_chain()));
    assert!(tokio::time::timeout(soon, &mut not_told).await.is_err());
    // A call after the revocation resolves at once.
    lists.revoked(far.peer_chain()).await;
    assert_eq!(lists.reload().unwrap(), Reload::Unchanged);
    assert!(!version.has_changed().unwrap());
}

#[tokio::test]
async fn without_lists_a_session_keeps_nothing() {
    let authority = Authority::new();
    let (client, server) = (
        authority.credentials(&identity("a")),
        authority.credentials(&identity("b")),
    );
    let (near, _far) = shake(&client, &server, &[identity("b")], ROOM).await;
    let near = near.unwrap();
    assert!(near.peer_chain().links().is_empty());
    assert!(!Revocations::default().is_revoked(near.peer_chain()));
    assert_eq!(size_of::<PeerChain>(), 16);
    assert!(size_of::<Link>() <= 48);
}

#[tokio::test]
async fn sessions_share_what_is_known_of_their_authority() {
    let authority = Authority::new();
    let lists = Place::with(list(&authority, &[])).open();
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let (a, b) = (issue(&authority, "a"), issue(&authority, "b"));
        let (near, _far) = meet((a, &lists), (b, &lists)).await;
        sessions.push(near.unwrap());
    }
    let issuer = |at: usize| &sessions[at].peer_chain().links()[0].issuer;
    assert!(Arc::ptr_eq(issuer(0), issuer(1)) && Arc::ptr_eq(issuer(1), issuer(2)));
    assert_eq!(lists.shared.authorities.len(), 1);
}

#[test]
fn a_file_that_cannot_be_used_stops_the_start() {
    let authority = Authority::new();
    let good = list(&authority, &[]);
    let der = authority.revoke(&[], SystemTime::now() + HOUR);
    let half = &good[..good.len() / 2];
    let bent = good.replacen("MI", "QI", 1);
    let cases: [(&[u8], &str); 6] = [
        (b"nonsense", "crl_empty"),
        (half.as_bytes(), "crl_unusable"),
        (bent.as_bytes(), "crl_unusable"),
        (&der.der()[..40], "crl_unusable"),
        (&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], "crl_unusable"),
        (&[der.der().as_ref(), b"x"].concat(), "crl_unusable"),
    ];
    for (content, reason) in cases {
        let place = Place::with(content);
        let error = Revocations::open(&place.path()).unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains("crl.pem"), "{error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let error = Revocations::open(directory.path()).unwrap_err();
    assert_eq!(error.reason(), "crl_io");
}

#[test]
fn pem_and_der_are_both_read() {
    let authority = Authority::new();
    let revoked = issue(&authority, "a");
    let made = authority.revoke(&[&revoked.chain[0]], SystemTime::now() + HOUR);
    for content in [made.pem().unwrap().into_bytes(), made.der().to_vec()] {
        let lists = Place::with(content).open();
        let loaded = lists.shared.lists.load();
        assert_eq!((loaded.len(), loaded[0].revoked()), (1, 1));
    }
}

#[test]
fn more_lists_than_any_mesh_has_are_refused() {
    let one = list(&Authority::new(), &[]);
    let place = Place::with(one.repeat(257));
    let error = Revocations::open(&place.path()).unwrap_err();
    assert_eq!(error.reason(), "crl_too_many");
}

#[tokio::test]
async fn a_later_file_that_is_bad_or_gone_changes_nothing() {
    let authority = Authority::new();
    let (a, b) = (issue(&authority, "a"), issue(&authority, "b"));
    let good = list(&authority, &[&a.chain[0]]);
    let place = Place::with(&good);
    let lists = place.open();
    for (bad, reason) in [
        (" \n", "crl_gone"),
        ("x", "crl_empty"),
        (&good[..200], "crl_unusable"),
    ] {
        place.write(bad);
        assert_eq!(lists.reload().unwrap_err().reason(), reason);
    }
    fs::remove_file(place.path()).unwrap();
    assert_eq!(lists.reload().unwrap_err().reason(), "crl_gone");
    let (_near, far) = meet((a, &Revocations::default()), (b, &lists)).await;
    assert_eq!(far.err().unwrap().reason(), "cert_revoked");
}

#[test]
fn an_empty_file_is_one_that_is_not_there_yet() {
    let place = Place::with("\n");
    let lists = place.open();
    assert!(lists.shared.lists.load().is_empty());
    place.write(list(&Authority::new(), &[]));
    assert_eq!(lists.reload().unwrap(), Reload::Changed);
}

#[tokio::test]
async fn the_file_is_followed() {
    let authority = Authority::new();
    let (a, b) = (issue(&authority, "a"), issue(&authority, "b"));
    // The file does not exist yet: an optional ConfigMap.
    let place = Place::empty();
    let lists = place.open();
    let follower = tokio::spawn(lists.clone().follow(Duration::from_millis(5)));
    let mut version = lists.subscribe();
    place.write("half a li");
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!version.has_changed().unwrap());
    // Replaced as Kubernetes does it: with a link to another directory.
    let next = place.directory.path().join("..data");
    fs::create_dir(&next).unwrap();
    fs::write(next.join("crl.pem"), list(&authority, &[&a.chain[0]])).unwrap();
    let link = place.directory.path().join("link");
    std::os::unix::fs::symlink(next.join("crl.pem"), &link).unwrap();
    fs::rename(link, place.path()).unwrap();
    let changed = tokio::time::timeout(Duration::from_secs(5), version.changed()).await;
    changed.unwrap().unwrap();
    let (_near, far) = meet((a, &Revocations::default()), (b, &lists)).await;
    assert_eq!(far.err().unwrap().reason(), "cert_revoked");
    follower.abort();
}

#[tokio::test]
async fn a_list_past_its_next_update_holds_on() {
    let authority = Authority::new();
    let (a, b) = (issue(&authority, "a"), issue(&authority, "b"));
    let old = authority.revoke(&[&a.chain[0]], SystemTime::now() - HOUR);
    let lists = Place::with(old.pem().unwrap()).open();
    assert!(lists.warn_of_old_lists());
    let (_near, far) = meet((a, &Revocations::default()), (b, &lists)).await;
    assert_eq!(far.err().unwrap().reason(), "cert_revoked");
    let (a, b) = (issue(&authority, "a"), issue(&authority, "b"));
    let (near, far) = meet((a, &lists), (b, &lists)).await;
    assert!(near.is_ok() && far.is_ok());
}
