//! Handshakes: success, and the reason of each kind of failure.

use std::time::SystemTime;

use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::error::Fault;
use super::super::testing::{Leaf, TestCa, handshake_pair, identity, pair, pattern, tcp};
use super::*;

const CAPACITY: usize = 64 * 1024;
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn both_sides_know_the_peers_identity() {
    let (mut local, mut remote) = pair(CAPACITY).await;
    assert_eq!(
        (local.peer(), remote.peer()),
        (&identity("b"), &identity("a"))
    );
    assert_eq!((local.role(), remote.role()), (Role::Client, Role::Server));
    for stream in [&local, &remote] {
        assert_eq!(stream.cipher_suite(), "TLS13_AES_128_GCM_SHA256");
        assert_eq!(stream.key_exchange(), "X25519MLKEM768");
        assert_eq!(stream.tls_version(), "TLSv1.3");
    }
    for (from, to) in [(&mut local, &mut remote)] {
        from.write_all(b"ping").await.unwrap();
        from.flush().await.unwrap();
        let mut got = [0; 4];
        to.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ping");
        to.write_all(b"pong").await.unwrap();
        to.flush().await.unwrap();
        from.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"pong");
    }
}

#[tokio::test]
async fn a_server_may_have_any_of_the_expected_identities() {
    let ca = TestCa::new();
    let (client, server) = (
        ca.credentials(&identity("a")),
        ca.credentials(&identity("b")),
    );
    let expected = [identity("c"), identity("b")];
    let (local, remote) = handshake_pair(&client, &server, &expected, CAPACITY).await;
    assert_eq!(
        (local.unwrap().peer(), remote.unwrap().peer()),
        (&identity("b"), &identity("a"))
    );
}

#[tokio::test]
async fn the_future_of_a_handshake_is_small() {
    let credentials = TestCa::new().credentials(&identity("a"));
    let (local, remote) = tokio::io::duplex(CAPACITY);
    let size = size_of_val(&connect(local, &credentials, &[]));
    assert!(size < 256, "{size}");
    assert!(size_of_val(&accept(remote, &credentials)) < 256);
}

#[tokio::test]
async fn bytes_sent_directly_after_the_handshake_are_not_lost() {
    let ca = TestCa::new();
    let (client, server) = (
        ca.credentials(&identity("a")),
        ca.credentials(&identity("b")),
    );
    let (local, remote) = tcp().await;
    let sent = pattern(300_000);
    let expected = [identity("b")];
    let writing = async {
        let mut local = connect(local, &client, &expected).await.unwrap();
        local.write_all(&sent).await.unwrap();
        local.shutdown().await.unwrap();
        local
    };
    let reading = async {
        // All bytes arrive before the server reads the client's Finished.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut remote = accept(remote, &server).await.unwrap();
        let mut got = Vec::new();
        remote.read_to_end(&mut got).await.unwrap();
        got
    };
    let (_near, got) = tokio::join!(writing, reading);
    assert!(got == sent);
}

#[tokio::test]
async fn a_client_that_reads_first_completes_the_handshake() {
    let ca = TestCa::new();
    let (client, server) = (
        ca.credentials(&identity("a")),
        ca.credentials(&identity("b")),
    );
    let (local, remote) = tokio::io::duplex(CAPACITY);
    let expected = [identity("b")];
    let (got, ()) = tokio::join!(
        async {
            let mut local = connect(local, &client, &expected).await.unwrap();
            local.read_u8().await.unwrap()
        },
        async {
            let mut remote = accept(remote, &server).await.unwrap();
            remote.write_u8(7).await.unwrap();
            remote.flush().await.unwrap();
        }
    );
    assert_eq!(got, 7);
}

#[tokio::test]
async fn a_client_refuses_a_server_without_an_expected_identity() {
    let (trusted, untrusted) = (TestCa::new(), TestCa::new());
    let (a, b) = (identity("a"), identity("b"));
    let leaf = |change: &dyn Fn(&mut Leaf)| {
        let mut leaf = Leaf::of(&b);
        change(&mut leaf);
        leaf
    };
    let cases: [(&TestCa, Leaf, &str); 9] = [
        (&untrusted, leaf(&|_| {}), "unknown_issuer"),
        (
            &trusted,
            leaf(&|leaf| leaf.uris = vec![identity("c").to_string()]),
            "wrong_identity",
        ),
        (
            &trusted,
            leaf(&|leaf| leaf.uris.push(identity("c").to_string())),
            "several_identities",
        ),
        (
            &trusted,
            leaf(&|leaf| leaf.uris.push(b.to_string())),
            "several_identities",
        ),
        (&trusted, leaf(&|leaf| leaf.uris.clear()), "no_identity"),
        (
            &trusted,
            leaf(&|leaf| leaf.uris = vec!["https://b".into()]),
            "foreign_identity",
        ),
        (
            &trusted,
            leaf(&|leaf| leaf.not_after = leaf.not_before),
            "not_valid_now",
        ),
        (
            &trusted,
            leaf(&|leaf| leaf.not_before = SystemTime::now() + HOUR),
            "not_valid_now",
        ),
        (
            &trusted,
            leaf(&|leaf| leaf.usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            "wrong_purpose",
        ),
    ];
    let client = trusted.credentials(&a);
    for (ca, leaf, reason) in cases {
        let server = ca.unchecked_credentials(&b, &leaf);
        let (local, remote) =
            handshake_pair(&client, &server, std::slice::from_ref(&b), CAPACITY).await;
        let error = local.err().unwrap();
        assert_eq!(error.reason(), reason, "{error}");
        assert_ne!(error.fault(), Fault::Us);
        assert_eq!(
            remote.err().unwrap().reason(),
            "refused_by_peer",
            "{reason}"
        );
    }
}

/// A client that trusts `trusted`, with a certificate that any authority may have signed.
fn credentials_trusting(trusted: &TestCa, signer: &TestCa, leaf: &Leaf) -> Credentials {
    let mut issued = signer.issue(leaf);
    issued.roots = vec![trusted.root()];
    Credentials::unchecked(&identity("a"), issued)
}

#[tokio::test]
async fn a_server_refuses_a_client_and_its_alert_names_the_cause() {
    let (trusted, untrusted) = (TestCa::new(), TestCa::new());
    let (a, b) = (identity("a"), identity("b"));
    let foreign = Identity::new("elsewhere", "default", "a").unwrap();
    let leaf = |change: &dyn Fn(&mut Leaf)| {
        let mut leaf = Leaf::of(&a);
        change(&mut leaf);
        leaf
    };
    let cases: [(&TestCa, Leaf, &str, &str); 7] = [
        (&untrusted, leaf(&|_| {}), "unknown_issuer", "UnknownCA"),
        (
            &trusted,
            leaf(&|leaf| leaf.uris.push(b.to_string())),
            "several_identities",
            "CertificateUnknown",
        ),
        (
            &trusted,
            leaf(&|leaf| leaf.uris.clear()),
            "no_identity",
            "CertificateUnknown",
        ),
        (
            &trusted,
            leaf(&|leaf| leaf.uris = vec!["spiffe://x".into()]),
            "foreign_identity",
            "CertificateUnknown",
        ),
        (
            &trusted,
            leaf(&|leaf| leaf.uris = vec![foreign.to_string()]),
            "wrong_trust_domain",
            "CertificateUnknown",
        ),
        (
            &trusted,
            leaf(&|leaf| leaf.not_after = leaf.not_before),
            "not_valid_now",
            "CertificateExpired",
        ),
        (
            &trusted,
            leaf(&|leaf| leaf.usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "wrong_purpose",
            "UnsupportedCertificate",
        ),
    ];
    let server = trusted.credentials(&b);
    for (ca, leaf, reason, alert) in cases {
        let client = credentials_trusting(&trusted, ca, &leaf);
        let (local, remote) =
            handshake_pair(&client, &server, std::slice::from_ref(&b), CAPACITY).await;
        let error = remote.err().unwrap();
        assert_eq!(error.reason(), reason, "{error}");
        let refused = local.unwrap().read_u8().await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        let found = RecordError::of(&refused).unwrap();
        assert_eq!(found.reason(), "refused_by_peer");
        assert!(found.to_string().contains(alert), "{reason}: {found}");
    }
}

#[tokio::test]
async fn over_tcp_unread_bytes_do_not_discard_the_alert() {
    let (trusted, untrusted) = (TestCa::new(), TestCa::new());
    let (a, b) = (identity("a"), identity("b"));
    let client = credentials_trusting(&trusted, &untrusted, &Leaf::of(&a));
    let server = trusted.credentials(&b);
    let (local, remote) = tcp().await;
    let expected = [b];
    let (refused, remote) = tokio::join!(
        async {
            let mut local = connect(local, &client, &expected).await.unwrap();
            local.write_all(&pattern(40_000)).await.unwrap();
            local.flush().await.unwrap();
            local.read_u8().await.unwrap_err()
        },
        accept(remote, &server)
    );
    assert_eq!(remote.err().unwrap().reason(), "unknown_issuer");
    assert_eq!(
        RecordError::of(&refused).unwrap().reason(),
        "refused_by_peer",
        "{refused}"
    );
}

/// The server's error and answer when a client sends these bytes and then closes.
async fn server_result(bytes: &[u8]) -> (Error, Vec<u8>) {
    let server = TestCa::new().credentials(&identity("b"));
    let (mut local, remote) = tokio::io::duplex(CAPACITY * 8);
    local.write_all(bytes).await.unwrap();
    local.shutdown().await.unwrap();
    let error = accept(remote, &server).await.err().unwrap();
    let mut answer = Vec::new();
    local.read_to_end(&mut answer).await.unwrap();
    (error, answer)
}

#[tokio::test]
async fn input_that_is_not_tls_has_a_reason() {
    for (bytes, reason) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "not_tls"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "not_tls"),
        (b"\x16\x16\x16\x16", "not_tls"),
        (b"\x15\x03\x03\x00\x02\x01\x00", "not_tls"),
        (b"\x80\x2e\x01\x03\x01", "not_tls"),
        (b"", "closed"),
        (b"\x16\x03", "closed"),
        (b"\x16\x03\x01\x00\x10", "closed"),
        (b"\x16\x03\x01\xff\xff\x01\x00", "misbehaved"),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "misbehaved"),
        (b"\x16\x03\x01\x00\x00", "misbehaved"),
    ] {
        let (error, _) = server_result(bytes).await;
        assert_eq!(error.reason(), reason, "{bytes:?}: {error}");
        assert_eq!(error.fault(), Fault::Downstream);
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400), head in 0..4_usize) {
        // Prefixes that get further: a handshake record, a ClientHello, its version and random.
        let mut sent = b"\x16\x03\x01\x00\x80\x01\x00\x00\x7c\x03\x03"[..[0, 5, 9, 11][head]].to_vec();
        sent.extend(bytes);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (error, _) = runtime.block_on(server_result(&sent));
        assert_ne!(error.fault(), Fault::Us, "{error}");
    }
}

/// A ClientHello without the extension that offers TLS 1.3 (RFC 5246, section 7.4.1.2).
fn tls12_hello() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([9; 32]);
    // No session, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, no compression.
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    // signature_algorithms, supported_groups
    let extensions = [0, 13, 0, 4, 0, 2, 4, 3, 0, 10, 0, 4, 0, 2, 0, 23];
    body.extend([0, 16]);
    body.extend(extensions);
    let length = u8::try_from(body.len()).unwrap();
    let mut hello = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    hello.extend(body);
    hello
}

#[tokio::test]
async fn a_tls_1_2_client_is_refused() {
    let (error, answer) = server_result(&tls12_hello()).await;
    assert_eq!(error.reason(), "incompatible", "{error}");
    // A fatal alert protocol_version, in plaintext.
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70]);
}

/// The client's error when a server answers with these bytes.
async fn client_error(bytes: &[u8]) -> Error {
    let client = TestCa::new().credentials(&identity("a"));
    let (local, mut remote) = tokio::io::duplex(CAPACITY);
    let (error, ()) = tokio::join!(
        async {
            connect(local, &client, &[identity("b")])
                .await
                .err()
                .unwrap()
        },
        async {
            let mut hello = [0; 5];
            remote.read_exact(&mut hello).await.unwrap();
            remote.write_all(bytes).await.unwrap();
            remote.shutdown().await.unwrap();
            let mut rest = Vec::new();
            remote.read_to_end(&mut rest).await.unwrap();
        }
    );
    error
}

#[tokio::test]
async fn a_client_reports_why_a_servers_response_is_wrong() {
    // A ServerHello of TLS 1.2: it has no extension that selects a version.
    let mut old = vec![22, 3, 3, 0, 42, 2, 0, 0, 38, 3, 3];
    old.extend([7; 32]);
    old.extend([0, 0xc0, 0x2b, 0]);
    for (bytes, reason) in [
        (&old[..], "incompatible"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not_tls"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "refused_by_peer"),
        (b"", "closed"),
    ] {
        let error = client_error(bytes).await;
        assert_eq!(error.reason(), reason, "{bytes:?}: {error}");
        assert_eq!(error.fault(), Fault::Upstream);
    }
}

#[tokio::test]
async fn a_handshake_above_the_limit_is_refused() {
    let server = TestCa::new().credentials(&identity("b"));
    let (mut local, remote) = tokio::io::duplex(CAPACITY);
    // One-byte fragments of a ClientHello whose header has a large length.
    let mut fragments = vec![22, 3, 1, 0, 4, 1, 0, 0xff, 0xff];
    for _ in 0..60_000 {
        fragments.extend([22, 3, 1, 0, 1, 0]);
    }
    let (_, error) = tokio::join!(local.write_all(&fragments), accept(remote, &server));
    assert_eq!(error.err().unwrap().reason(), "too_large");
}

/// Damages one byte of one side's output, at each position in turn.
#[tokio::test]
async fn a_damaged_handshake_fails_without_a_panic() {
    let ca = TestCa::new();
    let (client, server) = (
        ca.credentials(&identity("a")),
        ca.credentials(&identity("b")),
    );
    for at in (0..2600).step_by(47) {
        for side in [Role::Client, Role::Server] {
            let (local, local_wire) = tokio::io::duplex(CAPACITY);
            let (remote_wire, remote) = tokio::io::duplex(CAPACITY);
            let wire = copy_with_damage(local_wire, remote_wire, at, side);
            let expected = [identity("b")];
            let both = async {
                let connecting = async {
                    let mut local = connect(local, &client, &expected).await?;
                    let _sent = local.flush().await;
                    Ok::<_, Error>(local)
                };
                tokio::join!(connecting, accept(remote, &server))
            };
            let limited = tokio::time::timeout(Duration::from_millis(60), async {
                tokio::select! { both = both => Some(both), () = wire => None }
            });
            // After a damaged length, a side waits for more bytes; the caller's timeout ends that.
            if let Ok(Some((local, remote))) = Box::pin(limited).await {
                assert!(
                    local.is_err() || remote.is_err() || at > 1000,
                    "{at} {side:?}"
                );
            }
        }
    }
}

async fn copy_with_damage(local: DuplexStream, remote: DuplexStream, at: usize, side: Role) {
    let (mut local_read, mut local_write) = tokio::io::split(local);
    let (mut remote_read, mut remote_write) = tokio::io::split(remote);
    let flip = |role| if role == side { Some(at) } else { None };
    tokio::join!(
        copy_and_damage(&mut local_read, &mut remote_write, flip(Role::Client)),
        copy_and_damage(&mut remote_read, &mut local_write, flip(Role::Server))
    );
    std::future::pending().await
}

async fn copy_and_damage<R, W>(from: &mut R, to: &mut W, mut flip: Option<usize>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if let Some(at) = flip {
            if at < count {
                bytes[at] ^= 0x55;
                flip = None;
            } else {
                flip = Some(at - count);
            }
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            break;
        }
    }
    let _closed = to.shutdown().await;
}
