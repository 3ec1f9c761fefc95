//! The embedded authority: its certificates and its files.

mod signing;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::SystemTime;

use super::root::generate_root;
use super::*;
use tunnel::tls::{self, Credentials, Revocations, Store};

fn web() -> Identity {
    Identity::new("cluster.local", "default", "web").unwrap()
}

fn open(directory: &Path) -> Result<LocalCa, LocalCaError> {
    LocalCa::open(directory, "cluster.local", DEFAULT_LEAF_TTL)
}

#[test]
fn a_leaf_is_short_lived_and_contains_only_the_identity_of_the_workload() {
    let directory = tempfile::tempdir().unwrap();
    let ca = open(directory.path()).unwrap();
    let issued = ca.issue_now(&web()).unwrap();
    assert_eq!((issued.chain.len(), issued.roots.len()), (1, 1));
    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(
        names.value.general_names,
        [x509_parser::extensions::GeneralName::URI(
            "spiffe://cluster.local/ns/default/sa/web"
        )]
    );
    assert!(
        names.critical,
        "the extension must be critical if the subject is empty (RFC 5280, section 4.2.1.6)"
    );
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
    assert!(!leaf.is_ca());
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64;
    let (begin, end) = (
        leaf.validity().not_before.timestamp(),
        leaf.validity().not_after.timestamp(),
    );
    assert!(
        (110..=130).contains(&(now - begin)),
        "backdated by {} s",
        now - begin
    );
    assert!(
        (86_390..=86_400).contains(&(end - now)),
        "lifetime {} s",
        end - now
    );
    let other = ca.issue_now(&web()).unwrap();
    let (_, other) = x509_parser::parse_x509_certificate(&other.chain[0]).unwrap();
    assert_ne!(leaf.raw_serial(), other.raw_serial());
    assert_ne!(leaf.public_key().raw, other.public_key().raw);
}

#[test]
fn an_issued_leaf_can_be_used() {
    let directory = tempfile::tempdir().unwrap();
    let issued = open(directory.path()).unwrap().issue_now(&web()).unwrap();
    assert_eq!(
        Credentials::new(&web(), issued, &Revocations::default())
            .unwrap()
            .identity(),
        &web()
    );
}

#[test]
fn the_root_is_reused_from_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("state/ca");
    let first = open(&directory).unwrap();
    assert_eq!(open(&directory).unwrap().root(), first.root());
    assert_eq!(
        load_roots(&directory.join(CERTIFICATE)).unwrap(),
        [first.root().clone()]
    );
    let mode = |name| {
        fs::metadata(directory.join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode(KEY), mode(CERTIFICATE)), (0o600, 0o644));
    let entries: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|f| f.unwrap().file_name())
        .collect();
    assert_eq!(entries.len(), 3, "{entries:?}");
}

#[test]
fn proxies_that_start_together_share_one_root() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("ca");
    let gate = Arc::new(std::sync::Barrier::new(8));
    let proxies: Vec<_> = (0..8)
        .map(|_| {
            let (directory, gate) = (directory.clone(), gate.clone());
            std::thread::spawn(move || {
                gate.wait();
                open(&directory).unwrap().root().clone()
            })
        })
        .collect();
    let mut roots: Vec<_> = proxies
        .into_iter()
        .map(|proxy| proxy.join().unwrap())
        .collect();
    roots.dedup();
    assert_eq!(roots.len(), 1);
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).unwrap();
    for mode in [0o640, 0o604, 0o644, 0o660] {
        fs::set_permissions(directory.path().join(KEY), fs::Permissions::from_mode(mode)).unwrap();
        let error = open(directory.path()).unwrap_err();
        assert_eq!(error.reason(), "key_exposed", "{mode:o}");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
}

#[test]
fn unusable_files_are_refused_and_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    open(directory).unwrap();
    let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
    let good = fs::read(&certificate).unwrap();
    for (bad, reason) in [
        (Vec::new(), "damaged"),
        (b"nonsense".to_vec(), "damaged"),
        (good[..good.len() / 2].to_vec(), "damaged"),
        (
            generate_root("cluster.local").unwrap().0.into_bytes(),
            "mismatch",
        ),
    ] {
        fs::write(&certificate, &bad).unwrap();
        assert_eq!(open(directory).unwrap_err().reason(), reason);
        assert_eq!(fs::read(&certificate).unwrap(), bad);
    }
    fs::write(&certificate, &good).unwrap();
    fs::remove_file(&key).unwrap();
    assert_eq!(open(directory).unwrap_err().reason(), "key_missing");
    assert!(!key.exists());
}

#[test]
fn leftovers_of_a_crash_are_replaced() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(KEY), "half").unwrap();
    fs::write(directory.path().join(format!(".{CERTIFICATE}.new")), "half").unwrap();
    open(directory.path()).unwrap();
}

#[test]
fn other_trust_domains_and_short_lifetimes_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ca = open(directory.path()).unwrap();
    let foreign = Identity::new("elsewhere", "default", "web").unwrap();
    assert_eq!(ca.issue_now(&foreign).unwrap_err().reason(), "ca_refused");
    let error = LocalCa::open(directory.path(), "cluster.local", Duration::from_millis(10));
    assert_eq!(error.unwrap_err().reason(), "leaf_ttl");
}

#[tokio::test]
async fn two_identities_of_a_store_complete_a_handshake() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Arc::new(open(directory.path()).unwrap());
    let store = Store::new(
        ca,
        tls::Config::default(),
        tokio::runtime::Handle::current(),
    );
    let (client, server) = (web(), Identity::new("cluster.local", "shop", "db").unwrap());
    let (near, far) = tokio::io::duplex(64 * 1024);
    let as_client = store.get(&client).await.unwrap();
    let as_server = store.get(&server).await.unwrap();
    let expected = [server.clone()];
    let (near, far) = tokio::join!(
        async {
            let mut near = tls::connect(near, &as_client, &expected).await.unwrap();
            tokio::io::AsyncWriteExt::flush(&mut near).await.unwrap();
            near
        },
        tls::accept(far, &as_server)
    );
    assert_eq!((near.peer(), far.unwrap().peer()), (&server, &client));
}

/// `cargo test -p upstream --lib ca::local -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn time_to_issue() {
    let directory = tempfile::tempdir().unwrap();
    let ca = open(directory.path()).unwrap();
    let begin = std::time::Instant::now();
    for _ in 0..1000 {
        ca.issue_now(&web()).unwrap();
    }
    println!("{:?} a leaf", begin.elapsed() / 1000);
}
