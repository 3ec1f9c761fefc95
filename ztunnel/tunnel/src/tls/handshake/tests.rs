//! Handshakes that succeed, and each kind of failure with its reason.

use std::time::SystemTime;

use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::error::Fault;
use super::super::testing::{Authority, Leaf, identity, pair, pattern, shake, tcp};
use super::*;

const ROOM: usize = 64 * 1024;

#[tokio::test]
async fn two_workloads_learn_who_the_other_is() {
    let (mut near, mut far) = pair(ROOM).await;
    assert_eq!((near.peer(), far.peer()), (&identity("b"), &identity("a")));
    assert_eq!((near.role(), far.role()), (Role::Client, Role::Server));
    for stream in [&near, &far] {
        assert_eq!(stream.cipher_suite(), "TLS13_AES_128_GCM_SHA256");
        assert_eq!(stream.key_exchange(), "X25519MLKEM768");
        assert_eq!(stream.tls_version(), "TLSv1.3");
    }
    for (from, to) in [(&mut near, &mut far)] {
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
async fn any_of_the_expected_identities_will_do() {
    let authority = Authority::new();
    let (client, server) = (
        authority.credentials(&identity("a")),
        authority.credentials(&identity("b")),
    );
    let expected = [identity("c"), identity("b")];
    let (near, far) = shake(&client, &server, &expected, ROOM).await;
    assert_eq!(
        (near.unwrap().peer(), far.unwrap().peer()),
        (&identity("b"), &identity("a"))
    );
}

#[tokio::test]
async fn a_task_that_shakes_hands_stays_small() {
    let credentials = Authority::new().credentials(&identity("a"));
    let (near, far) = tokio::io::duplex(ROOM);
    let size = size_of_val(&connect(near, &credentials, &[]));
    assert!(size < 256, "{size}");
    assert!(size_of_val(&accept(far, &credentials)) < 256);
}

#[tokio::test]
async fn bytes_right_behind_the_handshake_are_not_lost() {
    let authority = Authority::new();
    let (client, server) = (
        authority.credentials(&identity("a")),
        authority.credentials(&identity("b")),
    );
    let (near, far) = tcp().await;
    let sent = pattern(300_000);
    let expected = [identity("b")];
    let writing = async {
        let mut near = connect(near, &client, &expected).await.unwrap();
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        near
    };
    let reading = async {
        // All bytes arrive before the server reads the client's Finished.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut far = accept(far, &server).await.unwrap();
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        got
    };
    let (_near, got) = tokio::join!(writing, reading);
    assert!(got == sent);
}

#[tokio::test]
async fn a_client_that_reads_first_still_ends_the_handshake() {
    let authority = Authority::new();
    let (client, server) = (
        authority.credentials(&identity("a")),
        authority.credentials(&identity("b")),
    );
    let (near, far) = tokio::io::duplex(ROOM);
    let expected = [identity("b")];
    let (got, ()) = tokio::join!(
        async {
            let mut near = connect(near, &client, &expected).await.unwrap();
            near.read_u8().await.unwrap()
        },
        async {
            let mut far = accept(far, &server).await.unwrap();
            far.write_u8(7).await.unwrap();
            far.flush().await.unwrap();
        }
    );
    assert_eq!(got, 7);
}

#[tokio::test]
async fn the_client_refuses_a_server_that_is_not_whom_it_expects() {
    let (ours, other) = (Authority::new(), Authority::new());
    let (a, b) = (identity("a"), identity("b"));
    let hour = Duration::from_secs(3600);
    let leaf = |change: &dyn Fn(&mut Leaf)| {
        let mut leaf = Leaf::of(&b);
        change(&mut leaf);
        leaf
    };
    let cases: [(&Authority, Leaf, &str); 9] = [
        (&other, leaf(&|_| {}), "unknown_issuer"),
        (
            &ours,
            leaf(&|leaf| leaf.uris = vec![identity("c").to_string()]),
            "wrong_identity",
        ),
        (
            &ours,
            leaf(&|leaf| leaf.uris.push(identity("c").to_string())),
            "several_identities",
        ),
        (
            &ours,
            leaf(&|leaf| leaf.uris.push(b.to_string())),
            "several_identities",
        ),
        (&ours, leaf(&|leaf| leaf.uris.clear()), "no_identity"),
        (
            &ours,
            leaf(&|leaf| leaf.uris = vec!["https://b".into()]),
            "foreign_identity",
        ),
        (
            &ours,
            leaf(&|leaf| leaf.not_after = leaf.not_before),
            "not_valid_now",
        ),
        (
            &ours,
            leaf(&|leaf| leaf.not_before = SystemTime::now() + hour),
            "not_valid_now",
        ),
        (
            &ours,
            leaf(&|leaf| leaf.usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            "wrong_purpose",
        ),
    ];
    let client = ours.credentials(&a);
    for (authority, leaf, reason) in cases {
        let server = authority.flawed(&b, &leaf);
        let (near, far) = shake(&client, &server, std::slice::from_ref(&b), ROOM).await;
        let error = near.err().unwrap();
        assert_eq!(error.reason(), reason, "{error}");
        assert_ne!(error.fault(), Fault::Us);
        assert_eq!(far.err().unwrap().reason(), "refused_by_peer", "{reason}");
    }
}

/// A client that trusts `ours`, with a certificate that any authority may have signed.
fn trusting(ours: &Authority, signer: &Authority, leaf: &Leaf) -> Credentials {
    let mut issued = signer.issue(leaf);
    issued.roots = vec![ours.root()];
    Credentials::unchecked(&identity("a"), issued)
}

#[tokio::test]
async fn the_server_refuses_a_client_and_the_client_learns_why() {
    let (ours, other) = (Authority::new(), Authority::new());
    let (a, b) = (identity("a"), identity("b"));
    let foreign = Identity::new("elsewhere", "default", "a").unwrap();
    let leaf = |change: &dyn Fn(&mut Leaf)| {
        let mut leaf = Leaf::of(&a);
        change(&mut leaf);
        leaf
    };
    let cases: [(&Authority, Leaf, &str, &str); 7] = [
        (&other, leaf(&|_| {}), "unknown_issuer", "UnknownCA"),
        (
            &ours,
            leaf(&|leaf| leaf.uris.push(b.to_string())),
            "several_identities",
            "CertificateUnknown",
        ),
        (
            &ours,
            leaf(&|leaf| leaf.uris.clear()),
            "no_identity",
            "CertificateUnknown",
        ),
        (
            &ours,
            leaf(&|leaf| leaf.uris = vec!["spiffe://x".into()]),
            "foreign_identity",
            "CertificateUnknown",
        ),
        (
            &ours,
            leaf(&|leaf| leaf.uris = vec![foreign.to_string()]),
            "wrong_trust_domain",
            "CertificateUnknown",
        ),
        (
            &ours,
            leaf(&|leaf| leaf.not_after = leaf.not_before),
            "not_valid_now",
            "CertificateExpired",
        ),
        (
            &ours,
            leaf(&|leaf| leaf.usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "wrong_purpose",
            "UnsupportedCertificate",
        ),
    ];
    let server = ours.credentials(&b);
    for (authority, leaf, reason, alert) in cases {
        let client = trusting(&ours, authority, &leaf);
        let (near, far) = shake(&client, &server, std::slice::from_ref(&b), ROOM).await;
        let error = far.err().unwrap();
        assert_eq!(error.reason(), reason, "{error}");
        let refused = near.unwrap().read_u8().await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        let found = RecordError::of(&refused).unwrap();
        assert_eq!(found.reason(), "refused_by_peer");
        assert!(found.to_string().contains(alert), "{reason}: {found}");
    }
}

#[tokio::test]
async fn over_tcp_the_alert_survives_bytes_that_were_not_read() {
    let (ours, other) = (Authority::new(), Authority::new());
    let (a, b) = (identity("a"), identity("b"));
    let client = trusting(&ours, &other, &Leaf::of(&a));
    let server = ours.credentials(&b);
    let (near, far) = tcp().await;
    let expected = [b];
    let (refused, far) = tokio::join!(
        async {
            let mut near = connect(near, &client, &expected).await.unwrap();
            near.write_all(&pattern(40_000)).await.unwrap();
            near.flush().await.unwrap();
            near.read_u8().await.unwrap_err()
        },
        accept(far, &server)
    );
    assert_eq!(far.err().unwrap().reason(), "unknown_issuer");
    assert_eq!(
        RecordError::of(&refused).unwrap().reason(),
        "refused_by_peer",
        "{refused}"
    );
}

/// The server's error and answer when a client sends these bytes and then closes.
async fn served(bytes: &[u8]) -> (Error, Vec<u8>) {
    let server = Authority::new().credentials(&identity("b"));
    let (mut near, far) = tokio::io::duplex(ROOM * 8);
    near.write_all(bytes).await.unwrap();
    near.shutdown().await.unwrap();
    let error = accept(far, &server).await.err().unwrap();
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    (error, answer)
}

#[tokio::test]
async fn names_what_is_not_tls() {
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
        let (error, _) = served(bytes).await;
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
        let (error, _) = runtime.block_on(served(&sent));
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
async fn refuses_a_client_of_an_older_version() {
    let (error, answer) = served(&tls12_hello()).await;
    assert_eq!(error.reason(), "incompatible", "{error}");
    // A fatal alert protocol_version, in plaintext.
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70]);
}

/// The client's error when a server answers with these bytes.
async fn answered(bytes: &[u8]) -> Error {
    let client = Authority::new().credentials(&identity("a"));
    let (near, mut far) = tokio::io::duplex(ROOM);
    let (error, ()) = tokio::join!(
        async {
            connect(near, &client, &[identity("b")])
                .await
                .err()
                .unwrap()
        },
        async {
            let mut hello = [0; 5];
            far.read_exact(&mut hello).await.unwrap();
            far.write_all(bytes).await.unwrap();
            far.shutdown().await.unwrap();
            let mut rest = Vec::new();
            far.read_to_end(&mut rest).await.unwrap();
        }
    );
    error
}

#[tokio::test]
async fn the_client_names_what_a_server_does_wrong() {
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
        let error = answered(bytes).await;
        assert_eq!(error.reason(), reason, "{bytes:?}: {error}");
        assert_eq!(error.fault(), Fault::Upstream);
    }
}

#[tokio::test]
async fn an_endless_handshake_is_cut_off() {
    let server = Authority::new().credentials(&identity("b"));
    let (mut near, far) = tokio::io::duplex(ROOM);
    // One-byte fragments of a ClientHello whose header has a large length.
    let mut fragments = vec![22, 3, 1, 0, 4, 1, 0, 0xff, 0xff];
    for _ in 0..60_000 {
        fragments.extend([22, 3, 1, 0, 1, 0]);
    }
    let (_, error) = tokio::join!(near.write_all(&fragments), accept(far, &server));
    assert_eq!(error.err().unwrap().reason(), "too_large");
}

/// Damages one byte of one side's output, at each position in turn.
#[tokio::test]
async fn a_damaged_handshake_fails_without_a_panic() {
    let authority = Authority::new();
    let (client, server) = (
        authority.credentials(&identity("a")),
        authority.credentials(&identity("b")),
    );
    for at in (0..2600).step_by(47) {
        for side in [Role::Client, Role::Server] {
            let (near, near_wire) = tokio::io::duplex(ROOM);
            let (far_wire, far) = tokio::io::duplex(ROOM);
            let wire = damage(near_wire, far_wire, at, side);
            let expected = [identity("b")];
            let both = async {
                let connecting = async {
                    let mut near = connect(near, &client, &expected).await?;
                    let _sent = near.flush().await;
                    Ok::<_, Error>(near)
                };
                tokio::join!(connecting, accept(far, &server))
            };
            let limited = tokio::time::timeout(Duration::from_millis(60), async {
                tokio::select! { both = both => Some(both), () = wire => None }
            });
            // After a damaged length, a side waits for more bytes; the caller's timeout ends that.
            if let Ok(Some((near, far))) = Box::pin(limited).await {
                assert!(near.is_err() || far.is_err() || at > 1000, "{at} {side:?}");
            }
        }
    }
}

async fn damage(near: DuplexStream, far: DuplexStream, at: usize, side: Role) {
    let (mut near_read, mut near_write) = tokio::io::split(near);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    let flip = |role| if role == side { Some(at) } else { None };
    tokio::join!(
        carry(&mut near_read, &mut far_write, flip(Role::Client)),
        carry(&mut far_read, &mut near_write, flip(Role::Server))
    );
    std::future::pending().await
}

async fn carry<R, W>(from: &mut R, to: &mut W, mut flip: Option<usize>)
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
