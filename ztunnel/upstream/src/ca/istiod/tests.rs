//! The client against a control plane on loopback: its requests, the accepted and the refused answers,
//! and changes of files at run time.

mod answers;
mod control_plane;
mod rotation;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tonic::Status;

use self::control_plane::{Authority, ControlPlane, Script, answers, signs};
use super::*;
use tunnel::tls::{self, Fault, Store};

const NAME: &str = "istiod.istio-system.svc";
const TOKEN: &str = "a-very-secret-token";

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "default", account).unwrap()
}

/// A mesh's authority, a control plane with a certificate of another one, and a client's files.
struct World {
    mesh: Arc<Authority>,
    authority: Authority,
    control_plane: ControlPlane,
    files: TempDir,
}

impl World {
    /// A control plane that signs.
    fn new() -> Self {
        let mesh = Arc::new(Authority::new("mesh"));
        let script = signs(&mesh);
        Self::with(mesh, script)
    }

    /// A control plane with a script for its answers.
    fn with(mesh: Arc<Authority>, script: Box<Script>) -> Self {
        let authority = Authority::new("control plane");
        let world = Self {
            control_plane: ControlPlane::serve(&authority, NAME, script),
            mesh,
            authority,
            files: tempfile::tempdir().unwrap(),
        };
        world.write("root.pem", &world.authority.root);
        world.write("token", TOKEN);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).unwrap();
    }

    fn config(&self) -> Config {
        Config {
            root: Root::File(self.path("root.pem")),
            alt_hostname: Some(NAME.to_owned()),
            token: Some(self.path("token")),
            cluster_id: "cluster1".to_owned(),
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(3),
            ..Config::new(self.control_plane.url())
        }
    }

    fn client(&self) -> IstiodCa {
        IstiodCa::new(self.config()).unwrap()
    }
}

fn store(client: IstiodCa) -> Arc<Store> {
    let runtime = tokio::runtime::Handle::current();
    Store::new(Arc::new(client), tls::Config::default(), runtime)
}

/// Completes a TLS handshake of two workloads, the first as the client.
async fn handshake(
    (client, a): (&Store, &Identity),
    (server, b): (&Store, &Identity),
) -> Result<(), tls::Error> {
    let (a, b_expected) = (client.get(a).await?, [b.clone()]);
    let b = server.get(b).await?;
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (near, far) = tokio::join!(
        async {
            let mut near = tls::connect(near, &a, &b_expected).await?;
            let flushed = tokio::io::AsyncWriteExt::flush(&mut near).await;
            // A server that refuses may have closed already.
            drop(flushed);
            Ok::<_, tls::Error>(near)
        },
        tls::accept(far, &b)
    );
    let (near, far) = (near?, far?);
    assert_eq!((near.peer(), far.peer()), (b.identity(), a.identity()));
    Ok(())
}

#[tokio::test]
async fn workloads_of_a_node_get_certificates_and_trust_each_other() {
    let world = World::new();
    let store = store(world.client());
    let (a, b) = (identity("a"), identity("b"));
    handshake((&store, &a), (&store, &b)).await.unwrap();
    let received = world.control_plane.requests();
    assert_eq!(received.len(), 2);
    assert_eq!(received[0].on_behalf_of.as_deref(), Some(a.as_str()));
    assert_eq!(received[0].from, received[1].from, "one connection");
    assert_ne!(received[0].csr, received[1].csr);
    for received in received {
        assert_eq!(received.validity, 86_400);
        let token = format!("Bearer {TOKEN}");
        assert_eq!(received.header("authorization"), Some(token.as_str()));
        assert_eq!(received.header("clusterid"), Some("cluster1"));
        assert!(received.header("grpc-timeout").is_some());
    }
}

#[tokio::test]
async fn the_request_has_the_configured_lifetime_headers_and_identity() {
    let world = World::new();
    let client = IstiodCa::new(Config {
        requester: Requester::Workload,
        validity: Duration::from_secs(600),
        headers: vec![("X-Tenant".to_owned(), "one".to_owned())],
        cluster_id: String::new(),
        token: None,
        ..world.config()
    });
    client.unwrap().issue(&identity("a")).await.unwrap();
    let received = &world.control_plane.requests()[0];
    assert_eq!((received.validity, &received.on_behalf_of), (600, &None));
    assert_eq!(received.header("x-tenant"), Some("one"));
    assert_eq!(received.header("clusterid"), None);
    assert_eq!(received.header("authorization"), None);
    let (_, pem) = x509_parser::pem::parse_x509_pem(received.csr.as_bytes()).unwrap();
    assert_eq!(pem.label, "CERTIFICATE REQUEST");
    let request = rcgen::CertificateSigningRequestParams::from_pem(&received.csr).unwrap();
    let uri = rcgen::SanType::URI(identity("a").as_str().try_into().unwrap());
    assert_eq!(request.params.subject_alt_names, [uri]);
}

#[tokio::test]
async fn a_control_plane_with_another_root_or_name_gets_no_request() {
    let world = World::new();
    world.write("other.pem", &Authority::new("another").root);
    let other_root = Config {
        root: Root::File(world.path("other.pem")),
        ..world.config()
    };
    let other_name = Config {
        alt_hostname: None,
        ..world.config()
    };
    for (config, expected) in [
        (other_root, "UnknownIssuer"),
        (other_name, "not valid for name"),
    ] {
        let Root::File(path) = config.root.clone() else {
            panic!("expected a file")
        };
        let error = IstiodCa::new(config).unwrap().issue(&identity("a")).await;
        let error = error.unwrap_err();
        assert_eq!(error.reason(), "ca_unavailable");
        let text = error.to_string();
        assert!(text.contains(expected), "{text}");
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        assert!(text.contains(&world.control_plane.url()), "{text}");
    }
    assert!(
        world.control_plane.requests().is_empty(),
        "no token was sent"
    );
}

#[tokio::test]
async fn the_token_is_read_for_each_request() {
    let world = World::new();
    let client = world.client();
    for token in ["first", "second\n"] {
        world.write("token", token);
        client.issue(&identity("a")).await.unwrap();
    }
    let received = world.control_plane.requests();
    let sent: Vec<_> = received.iter().map(|a| a.header("authorization")).collect();
    assert_eq!(sent, [Some("Bearer first"), Some("Bearer second")]);
}

#[tokio::test]
async fn an_unusable_token_is_reported_by_its_file_and_not_shown() {
    let world = World::new();
    let client = world.client();
    let path = world.path("token").display().to_string();
    let large = "x".repeat(20_000);
    for bad in ["", " \n", "se\ncret-token", large.as_str()] {
        world.write("token", bad);
        let error = client.issue(&identity("a")).await.unwrap_err();
        assert_eq!(error.reason(), "ca_unavailable");
        assert!(error.to_string().contains(&path), "{error}");
        assert!(!error.to_string().contains("cret-token"), "{error}");
    }
    std::fs::remove_file(world.path("token")).unwrap();
    let error = client.issue(&identity("a")).await.unwrap_err();
    assert!(error.to_string().contains(&path), "{error}");
    assert!(world.control_plane.requests().is_empty());
}

#[tokio::test]
async fn refusals_are_classified_with_a_hint_at_the_setting_to_check() {
    for (code, reason, hint) in [
        (Code::Unauthenticated, "ca_refused", "the token in"),
        (Code::PermissionDenied, "ca_refused", "run on it"),
        (Code::InvalidArgument, "ca_refused", "InvalidArgument"),
        (Code::Unimplemented, "ca_refused", "Unimplemented"),
        (Code::Unavailable, "ca_unavailable", "Unavailable"),
        (Code::Internal, "ca_unavailable", "Internal"),
    ] {
        let message = format!("because\nof {}", "x".repeat(2000));
        let script = answers(move |_| Err(Status::new(code, message.clone())));
        let world = World::with(Arc::new(Authority::new("mesh")), script);
        let error = world.client().issue(&identity("a")).await.unwrap_err();
        assert_eq!((error.reason(), error.fault()), (reason, Fault::Mesh));
        let text = error.to_string();
        assert!(text.contains(hint), "{text}");
        assert!(text.contains("because of x"), "{text}");
        assert!(text.len() < 1200 && !text.contains('\n'), "{text}");
        assert!(!text.contains(TOKEN), "{text}");
    }
}

#[tokio::test]
async fn debug_output_does_not_show_secrets() {
    let world = World::new();
    let config = Config {
        headers: vec![("x-key".to_owned(), "hidden".to_owned())],
        ..world.config()
    };
    let client = IstiodCa::new(config).unwrap();
    let shown = format!("{client:?} {:?}", client.headers);
    assert!(
        shown.contains("x-key") && !shown.contains("hidden"),
        "{shown}"
    );
}

/// Asserts that a change of valid settings is refused for this reason, or accepted.
fn check(change: impl FnOnce(&mut Config), reason: Option<&str>) {
    let files = tempfile::tempdir().unwrap();
    let root = files.path().join("root.pem");
    std::fs::write(&root, Authority::new("control plane").root).unwrap();
    let mut config = Config::new("https://istiod.istio-system.svc:15012");
    config.root = Root::File(root);
    change(&mut config);
    let result = IstiodCa::new(config);
    match (&result, reason) {
        (Err(error), Some(reason)) => assert_eq!(error.reason(), reason, "{error}"),
        (Ok(_), None) => {}
        _ => panic!("{result:?}, expected {reason:?}"),
    }
}

#[test]
fn the_address_must_be_https_unless_it_is_loopback() {
    for (address, reason) in [
        ("https://istiod:15012", None),
        ("istiod.istio-system.svc:15012", None),
        ("https://[fd00::1]:15012/", None),
        ("http://127.0.0.1:15012", None),
        ("http://[::1]:15012", None),
        ("http://istiod:15012", Some("ca_plaintext")),
        ("http://10.0.0.1:15012", Some("ca_plaintext")),
        ("http://127.0.0.1.example.com:15012", Some("ca_plaintext")),
        ("ftp://istiod:15012", Some("ca_address")),
        ("https://user@istiod:15012", Some("ca_address")),
        ("https://istiod:15012/path", Some("ca_address")),
        ("https://istiod:15012?query", Some("ca_address")),
        ("https://istiod:portal", Some("ca_address")),
        ("", Some("ca_address")),
    ] {
        check(|config| config.address = address.to_owned(), reason);
    }
}

#[test]
fn names_and_headers_that_cannot_be_sent_are_refused() {
    for (name, value, reason) in [
        ("X_Tenant", "one", None),
        ("grpc-timeout", "1S", Some("ca_header")),
        ("content-type", "x", Some("ca_header")),
        ("x-key-bin", "x", Some("ca_header")),
        ("a b", "x", Some("ca_header")),
        ("x-key", "line\nbreak", Some("ca_header")),
    ] {
        let header = (name.to_owned(), value.to_owned());
        check(|config| config.headers = vec![header], reason);
    }
    check(|c| c.cluster_id = "\u{7f}".to_owned(), Some("ca_header"));
    let name = Some("not a name".to_owned());
    check(|c| c.alt_hostname = name, Some("ca_tls"));
}

#[test]
fn files_without_root_certificates_are_refused() {
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let cut = Authority::new("control plane").root[..200].to_owned();
    for (path, reason) in [
        (files.path().join("none.pem"), "ca_io"),
        (files.path().to_owned(), "ca_io"),
        (file("empty.pem", ""), "ca_roots"),
        (file("cut.pem", &cut), "ca_roots"),
        (file("large.pem", &"x".repeat(1 << 21)), "ca_io"),
    ] {
        check(|c| c.root = Root::File(path.clone()), Some(reason));
        check(|c| c.mesh_roots = Some(path), Some(reason));
    }
}

#[tokio::test]
async fn plaintext_works_on_loopback() {
    let mesh = Arc::new(Authority::new("mesh"));
    let port = "127.0.0.1:0".parse().unwrap();
    let control_plane = ControlPlane::serve_at(port, None, signs(&mesh));
    let address = control_plane.url().replace("https", "http");
    let client = IstiodCa::new(Config::new(address)).unwrap();
    client.issue(&identity("a")).await.unwrap();
}

fn append(path: &Path, more: &str) {
    let mut content = std::fs::read_to_string(path).unwrap();
    content.push_str(more);
    std::fs::write(path, content).unwrap();
}
