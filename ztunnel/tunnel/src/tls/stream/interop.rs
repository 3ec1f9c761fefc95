//! Our record layer against rustls's own over TCP, in both roles, with key updates during the
//! transfer. The rustls side runs in a blocking thread.

use std::io::{Read, Write};
use std::net::TcpStream as StdStream;
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::testing::{Leaf, TestCa, certified, identity, pattern, tcp};
use super::super::verify::{ClientVerifier, ServerVerifier, Trust, provider};
use super::super::{Revocations, accept, connect};
use super::*;

const LENGTH: usize = 3 << 20;
const PIECE: usize = 100_000;

fn trust(ca: &TestCa) -> Trust {
    let mut roots = RootCertStore::empty();
    roots.add(ca.root()).unwrap();
    Trust {
        roots: Arc::new(roots),
        revocations: Revocations::default(),
    }
}

fn blocking(stream: TcpStream) -> StdStream {
    let stream = stream.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

fn rustls_client(ca: &TestCa, alpn: &[&[u8]], fragments: Option<usize>) -> ClientConnection {
    let issued = ca.issue(&Leaf::of(&identity("a")));
    let (chain, key) = (issued.chain, issued.key);
    let verifier: Arc<dyn ServerCertVerifier> = Arc::new(ServerVerifier {
        trust: trust(ca),
        expected: vec![identity("b")],
    });
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.max_fragment_size = fragments;
    ClientConnection::new(Arc::new(config), ServerName::try_from("10.0.0.1").unwrap()).unwrap()
}

/// The server sends tickets, as other implementations do.
fn rustls_server(ca: &TestCa, alpn: &[&[u8]], fragments: Option<usize>) -> ServerConnection {
    let issued = ca.issue(&Leaf::of(&identity("b")));
    let key = certified(issued);
    let verifier: Arc<dyn ClientCertVerifier> = Arc::new(ClientVerifier {
        trust: trust(ca),
        local_identity: identity("b"),
    });
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
            Arc::unwrap_or_clone(key),
        )));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.max_fragment_size = fragments;
    ServerConnection::new(Arc::new(config)).unwrap()
}

/// Sends the pattern in pieces with a key update after each, then reads it back to the end.
fn rustls_exchange<S: rustls::SideData>(
    mut stream: rustls::StreamOwned<
        impl std::ops::DerefMut<Target = rustls::ConnectionCommon<S>>,
        StdStream,
    >,
) {
    let mut back = Vec::new();
    let mut piece = vec![0; PIECE];
    for sent in pattern(LENGTH).chunks(PIECE) {
        stream.write_all(sent).unwrap();
        stream.flush().unwrap();
        stream.conn.refresh_traffic_keys().unwrap();
        // The echo is read at the same pace, or both sides would block.
        let piece = &mut piece[..sent.len()];
        stream.read_exact(piece).unwrap();
        back.extend_from_slice(piece);
    }
    assert!(back == pattern(LENGTH));
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(
        stream.read(&mut piece).unwrap(),
        0,
        "close_notify comes back"
    );
}

/// Sends all received bytes back, and updates its own key all the time.
async fn echo(mut stream: Stream<TcpStream>) {
    stream.outgoing.set_key_limit(2);
    let mut piece = vec![0; 30_000];
    loop {
        let count = stream.read(&mut piece).await.unwrap();
        if count == 0 {
            break;
        }
        stream.write_all(&piece[..count]).await.unwrap();
        stream.flush().await.unwrap();
    }
    stream.shutdown().await.unwrap();
}

#[tokio::test]
async fn our_server_with_a_rustls_client() {
    let ca = TestCa::new();
    let server = ca.credentials(&identity("b"));
    let (local, remote) = tcp().await;
    let connection = rustls_client(&ca, &[b"h2"], None);
    let local = blocking(local);
    let client =
        std::thread::spawn(move || rustls_exchange(rustls::StreamOwned::new(connection, local)));
    let stream = accept(remote, &server).await.unwrap();
    assert_eq!(stream.peer(), &identity("a"));
    echo(stream).await;
    tokio::task::spawn_blocking(move || client.join().unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn our_client_with_a_rustls_server_that_sends_tickets() {
    let ca = TestCa::new();
    let client = ca.credentials(&identity("a"));
    let (local, remote) = tcp().await;
    let connection = rustls_server(&ca, &[b"h2"], None);
    let remote = blocking(remote);
    let server =
        std::thread::spawn(move || rustls_exchange(rustls::StreamOwned::new(connection, remote)));
    let stream = connect(local, &client, &[identity("b")]).await.unwrap();
    assert_eq!(stream.peer(), &identity("b"));
    echo(stream).await;
    tokio::task::spawn_blocking(move || server.join().unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_peer_without_alpn_h2_is_refused() {
    let ca = TestCa::new();
    for alpn in [&[][..], &[&b"http/1.1"[..]]] {
        let credentials = ca.credentials(&identity("b"));
        let (local, remote) = tcp().await;
        let (mut connection, mut local) = (rustls_client(&ca, alpn, None), blocking(local));
        let client = std::thread::spawn(move || {
            let _failed = connection.complete_io(&mut local);
            // Until the server closes.
            let _end = local.read_to_end(&mut Vec::new());
        });
        let error = accept(remote, &credentials).await.err().unwrap();
        assert_eq!(error.reason(), "no_alpn", "{alpn:?}: {error}");
        client.join().unwrap();

        let credentials = ca.credentials(&identity("a"));
        let (local, remote) = tcp().await;
        let (mut connection, mut remote) = (rustls_server(&ca, alpn, None), blocking(remote));
        let server = std::thread::spawn(move || {
            let _failed = connection.complete_io(&mut remote);
            let _end = remote.read_to_end(&mut Vec::new());
        });
        let error = connect(local, &credentials, &[identity("b")])
            .await
            .err()
            .unwrap();
        let expected = if alpn.is_empty() {
            "no_alpn"
        } else {
            "refused_by_peer"
        };
        assert_eq!(error.reason(), expected, "{alpn:?}: {error}");
        server.join().unwrap();
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = TestCa::new();
    let credentials = ca.credentials(&identity("b"));
    let (local, remote) = tcp().await;
    let verifier = Arc::new(ServerVerifier {
        trust: trust(&ca),
        expected: vec![identity("b")],
    });
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("10.0.0.1").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let local = blocking(local);
    let client = std::thread::spawn(move || {
        let mut stream = rustls::StreamOwned::new(connection, local);
        stream.read(&mut [0; 9]).unwrap_err().to_string()
    });
    let error = accept(remote, &credentials).await.err().unwrap();
    assert_eq!(error.reason(), "no_certificate", "{error}");
    let alert = tokio::task::spawn_blocking(move || client.join().unwrap())
        .await
        .unwrap();
    assert!(alert.contains("CertificateRequired"), "{alert}");
}

#[tokio::test]
async fn handshakes_in_small_fragments_work() {
    let ca = TestCa::new();
    for size in [32, 33, 100, 500, 2000] {
        let credentials = ca.credentials(&identity("b"));
        let (local, remote) = tcp().await;
        let connection = rustls_client(&ca, &[b"h2"], Some(size));
        let local = blocking(local);
        let client = std::thread::spawn(move || {
            let mut stream = rustls::StreamOwned::new(connection, local);
            stream.write_all(&[7; 5000]).unwrap();
            stream.flush().unwrap();
            stream.read_exact(&mut [0; 1]).unwrap();
        });
        let mut stream = accept(remote, &credentials).await.unwrap();
        stream.read_exact(&mut [0; 5000]).await.unwrap();
        stream.write_all(b"!").await.unwrap();
        stream.flush().await.unwrap();
        client.join().unwrap();

        let credentials = ca.credentials(&identity("a"));
        let (local, remote) = tcp().await;
        let connection = rustls_server(&ca, &[b"h2"], Some(size));
        let remote = blocking(remote);
        let server = std::thread::spawn(move || {
            let mut stream = rustls::StreamOwned::new(connection, remote);
            stream.read_exact(&mut [0; 1]).unwrap();
            stream.write_all(&[7; 5000]).unwrap();
            stream.flush().unwrap();
        });
        let mut stream = connect(local, &credentials, &[identity("b")])
            .await
            .unwrap();
        stream.write_all(b"!").await.unwrap();
        stream.flush().await.unwrap();
        stream.read_exact(&mut [0; 5000]).await.unwrap();
        server.join().unwrap();
    }
}
