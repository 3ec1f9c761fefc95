//! Authentication: the client verifies the control plane and sends the token of the node.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;
use crate::ads::config::ValidConfig;
use crate::ads::connection;

/// A root, and the TLS configuration of a control plane with a certificate of this root.
struct TestCa {
    root: String,
    server: Arc<ServerConfig>,
}

/// A root with a server certificate for `server_name`.
fn test_ca(server_name: &str) -> TestCa {
    test_ca_named("test root", server_name)
}

fn test_ca_named(root_name: &str, server_name: &str) -> TestCa {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, root_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().pem();
    let signer = Issuer::new(params, key);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let params = CertificateParams::new(vec![server_name.to_owned()]).unwrap();
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
    TestCa {
        root,
        server: Arc::new(server),
    }
}

fn write_file(directory: &Path, name: &str, content: &str) -> std::path::PathBuf {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    path
}

/// The error of a connection attempt that must fail.
async fn connect_error(config: Config) -> String {
    let config = ValidConfig::new(config).unwrap();
    let error = soon(connection::connect(&config))
        .await
        .expect_err("the client must not connect");
    error.to_string()
}

#[tokio::test]
async fn a_private_root_and_an_alternative_name_are_accepted() {
    let ca = test_ca("istiod.istio-system.svc");
    let directory = tempfile::tempdir().unwrap();
    let root = write_file(directory.path(), "root.pem", &ca.root);
    let control_plane = ControlPlane::with_tls(ca.server).await;
    let mut world = World::with_control_plane(control_plane, |config| {
        config.root = Root::File(root);
        config.alt_hostname = Some("istiod.istio-system.svc".to_owned());
        config.headers = vec![("X-Tenant".to_owned(), "blue".to_owned())];
    });
    let session = world.subscribed().await;
    assert_eq!(session.metadata.get("x-tenant").unwrap(), "blue");
    assert!(session.metadata.get("authorization").is_none());
}

#[tokio::test]
async fn a_certificate_of_another_root_is_refused_with_the_root_file_in_the_error() {
    let good = test_ca("127.0.0.1");
    let directory = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::with_tls(good.server).await;
    // Roots of two meshes may have the same name.
    for name in ["test root", "another root"] {
        let other = test_ca_named(name, "127.0.0.1").root;
        let other = write_file(directory.path(), "other.pem", &other);
        let mut config = config(&control_plane.url());
        config.root = Root::File(other.clone());
        let text = connect_error(config).await;
        let likely = format!(
            "(its certificate is not signed by a root in {})",
            other.display()
        );
        assert!(
            text.starts_with("the control plane https://127.0.0.1:"),
            "{text}"
        );
        assert!(text.ends_with(&likely), "{text}");
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_with_the_setting_in_the_error() {
    let ca = test_ca("istiod.istio-system.svc");
    let directory = tempfile::tempdir().unwrap();
    let root = write_file(directory.path(), "root.pem", &ca.root);
    let control_plane = ControlPlane::with_tls(ca.server).await;
    let mut config = config(&control_plane.url());
    config.root = Root::File(root);
    let text = connect_error(config).await;
    assert!(text.contains("ALT_XDS_HOSTNAME"), "{text}");
}

#[tokio::test]
async fn a_file_without_root_certificates_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let empty = write_file(directory.path(), "empty.pem", "");
    let key = write_file(
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
        let text = connect_error(config).await;
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        assert!(text.contains(why), "{text}");
    }
}

#[tokio::test]
async fn a_new_token_is_used_on_the_next_connection() {
    let ca = test_ca("127.0.0.1");
    let directory = tempfile::tempdir().unwrap();
    let root = write_file(directory.path(), "root.pem", &ca.root);
    let token = write_file(directory.path(), "token", "first\n");
    let control_plane = ControlPlane::with_tls(ca.server).await;
    let mut world = World::with_control_plane(control_plane, |config| {
        config.root = Root::File(root);
        config.token = Some(token);
    });
    let session = world.subscribed().await;
    let bearer = session.metadata.get("authorization").unwrap();
    assert_eq!(bearer, "Bearer first");
    write_file(directory.path(), "token", "second\n");
    drop(session);
    let session = world.subscribed().await;
    let bearer = session.metadata.get("authorization").unwrap();
    assert_eq!(bearer, "Bearer second");
}

#[tokio::test]
async fn a_token_is_not_sent_in_plaintext() {
    let directory = tempfile::tempdir().unwrap();
    let token = write_file(directory.path(), "token", "secret");
    let mut world = World::with(|config| config.token = Some(token)).await;
    let session = world.subscribed().await;
    assert!(session.metadata.get("authorization").is_none());
}

#[tokio::test]
async fn the_error_about_an_invalid_token_does_not_show_the_token() {
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
        config.token = Some(write_file(directory.path(), "token", &content));
        let config = ValidConfig::new(config).unwrap();
        let text = connection::metadata(&config)
            .await
            .expect_err("the token must be refused")
            .to_string();
        assert!(text.contains(why), "{text}");
        assert!(!text.contains("sec"), "{text}");
    }
}
