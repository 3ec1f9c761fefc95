//! Who the control plane is, and who asks it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;
use crate::ads::config::Checked;
use crate::ads::connection;

/// An authority with a control plane's certificate for `name`.
struct Authority {
    root: String,
    server: Arc<ServerConfig>,
}

fn authority(name: &str) -> Authority {
    authority_called("test root", name)
}

fn authority_called(root_name: &str, name: &str) -> Authority {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, root_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().pem();
    let signer = Issuer::new(params, key);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let leaf = params.signed_by(&key, &signer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    Authority {
        root,
        server: Arc::new(server),
    }
}

fn keep(directory: &Path, name: &str, content: &str) -> std::path::PathBuf {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    path
}

/// Why there is no connection.
async fn failure(config: Config) -> String {
    let to = Checked::new(config).unwrap();
    let error = soon(connection::connect(&to))
        .await
        .expect_err("no connection");
    error.to_string()
}

#[tokio::test]
async fn a_private_root_and_another_name() {
    let authority = authority("istiod.istio-system.svc");
    let directory = tempfile::tempdir().unwrap();
    let root = keep(directory.path(), "root.pem", &authority.root);
    let plane = Plane::with_tls(authority.server).await;
    let mut world = World::around(plane, |config| {
        config.root = Root::File(root);
        config.alt_hostname = Some("istiod.istio-system.svc".to_owned());
        config.headers = vec![("X-Tenant".to_owned(), "blue".to_owned())];
    });
    let session = world.subscribed().await;
    assert_eq!(session.metadata.get("x-tenant").unwrap(), "blue");
    assert!(session.metadata.get("authorization").is_none());
}

#[tokio::test]
async fn another_root_is_refused_and_named() {
    let good = authority("127.0.0.1");
    let directory = tempfile::tempdir().unwrap();
    let plane = Plane::with_tls(good.server).await;
    // Roots of two meshes may bear the same name.
    for name in ["test root", "another root"] {
        let other = authority_called(name, "127.0.0.1").root;
        let other = keep(directory.path(), "other.pem", &other);
        let mut config = config(&plane.url());
        config.root = Root::File(other.clone());
        let text = failure(config).await;
        let likely = format!("(it is not signed by a root in {})", other.display());
        assert!(
            text.starts_with("the control plane https://127.0.0.1:"),
            "{text}"
        );
        assert!(text.ends_with(&likely), "{text}");
    }
}

#[tokio::test]
async fn another_name_is_refused_and_the_setting_named() {
    let authority = authority("istiod.istio-system.svc");
    let directory = tempfile::tempdir().unwrap();
    let root = keep(directory.path(), "root.pem", &authority.root);
    let plane = Plane::with_tls(authority.server).await;
    let mut config = config(&plane.url());
    config.root = Root::File(root);
    let text = failure(config).await;
    assert!(text.contains("ALT_XDS_HOSTNAME"), "{text}");
}

#[tokio::test]
async fn root_files_that_hold_none_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let empty = keep(directory.path(), "empty.pem", "");
    let key = keep(
        directory.path(),
        "broken.pem",
        "-----BEGIN CERTIFICATE-----\n???\n-----END CERTIFICATE-----\n",
    );
    for (path, why) in [
        (directory.path().join("missing.pem"), "No such file"),
        (empty, "the file holds no PEM certificate"),
        (key, "cannot be used: "),
    ] {
        let mut config = config("https://127.0.0.1:1");
        config.root = Root::File(path.clone());
        let text = failure(config).await;
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        assert!(text.contains(why), "{text}");
    }
}

#[tokio::test]
async fn a_new_token_is_used_on_the_next_connection() {
    let authority = authority("127.0.0.1");
    let directory = tempfile::tempdir().unwrap();
    let root = keep(directory.path(), "root.pem", &authority.root);
    let token = keep(directory.path(), "token", "first\n");
    let plane = Plane::with_tls(authority.server).await;
    let mut world = World::around(plane, |config| {
        config.root = Root::File(root);
        config.token = Some(token);
    });
    let session = world.subscribed().await;
    let bearer = session.metadata.get("authorization").unwrap();
    assert_eq!(bearer, "Bearer first");
    keep(directory.path(), "token", "second\n");
    drop(session);
    let session = world.subscribed().await;
    let bearer = session.metadata.get("authorization").unwrap();
    assert_eq!(bearer, "Bearer second");
}

#[tokio::test]
async fn a_token_is_not_sent_in_the_clear() {
    let directory = tempfile::tempdir().unwrap();
    let token = keep(directory.path(), "token", "secret");
    let mut world = World::with(|config| config.token = Some(token)).await;
    let session = world.subscribed().await;
    assert!(session.metadata.get("authorization").is_none());
}

#[tokio::test]
async fn a_token_that_cannot_be_used_is_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    for (content, why) in [
        (" \n".to_owned(), "the file holds no token"),
        (
            "sec\u{7f}ret".to_owned(),
            "the file holds characters that are not allowed in a token",
        ),
        (
            "secret".repeat(20_000),
            "the file is larger than 65536 bytes",
        ),
    ] {
        let mut config = config("https://127.0.0.1:1");
        config.token = Some(keep(directory.path(), "token", &content));
        let to = Checked::new(config).unwrap();
        let text = connection::metadata(&to)
            .await
            .expect_err("refused")
            .to_string();
        assert!(text.contains(why), "{text}");
        assert!(!text.contains("sec"), "{text}");
    }
}
