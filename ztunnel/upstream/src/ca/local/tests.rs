//! The embedded authority: what it signs, and how it treats its files.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

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
fn a_leaf_is_short_lived_and_names_the_workload_only() {
    let place = tempfile::tempdir().unwrap();
    let ca = open(place.path()).unwrap();
    let issued = ca.sign(&web()).unwrap();
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
        "the subject is empty (RFC 5280, section 4.2.1.6)"
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
        "dated back {}",
        now - begin
    );
    assert!(
        (86_390..=86_400).contains(&(end - now)),
        "lives {}",
        end - now
    );
    let other = ca.sign(&web()).unwrap();
    let (_, other) = x509_parser::parse_x509_certificate(&other.chain[0]).unwrap();
    assert_ne!(leaf.raw_serial(), other.raw_serial());
    assert_ne!(leaf.public_key().raw, other.public_key().raw);
}

#[test]
fn an_issued_leaf_can_be_used() {
    let place = tempfile::tempdir().unwrap();
    let issued = open(place.path()).unwrap().sign(&web()).unwrap();
    assert_eq!(
        Credentials::new(&web(), issued, &Revocations::default())
            .unwrap()
            .identity(),
        &web()
    );
}

#[test]
fn the_directory_keeps_the_root() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("state/ca");
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
    let left: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|f| f.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn proxies_that_start_together_share_one_root() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("ca");
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
    let place = tempfile::tempdir().unwrap();
    open(place.path()).unwrap();
    for mode in [0o640, 0o604, 0o644, 0o660] {
        fs::set_permissions(place.path().join(KEY), fs::Permissions::from_mode(mode)).unwrap();
        let error = open(place.path()).unwrap_err();
        assert_eq!(error.reason(), "key_exposed", "{mode:o}");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
}

#[test]
fn files_that_do_not_fit_are_refused_and_never_replaced() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path();
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
fn a_start_that_crashed_half_way_is_mended() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join(KEY), "half").unwrap();
    fs::write(place.path().join(format!(".{CERTIFICATE}.new")), "half").unwrap();
    open(place.path()).unwrap();
}

#[test]
fn refuses_other_trust_domains_and_lifetimes_that_cannot_work() {
    let place = tempfile::tempdir().unwrap();
    let ca = open(place.path()).unwrap();
    let stranger = Identity::new("elsewhere", "default", "web").unwrap();
    assert_eq!(ca.sign(&stranger).unwrap_err().reason(), "ca_refused");
    let error = LocalCa::open(place.path(), "cluster.local", Duration::from_millis(10));
    assert_eq!(error.unwrap_err().reason(), "leaf_ttl");
}

#[tokio::test]
async fn serves_a_store() {
    let place = tempfile::tempdir().unwrap();
    let ca = Arc::new(open(place.path()).unwrap());
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

/// `cargo test -p ztunnel --lib ca::local -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn how_long_issuing_takes() {
    let place = tempfile::tempdir().unwrap();
    let ca = open(place.path()).unwrap();
    let begin = std::time::Instant::now();
    for _ in 0..1000 {
        ca.sign(&web()).unwrap();
    }
    println!("{:?} a leaf", begin.elapsed() / 1000);
}
