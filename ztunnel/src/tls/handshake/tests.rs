//! Handshakes that succeed, and every way one may fail with the reason it must name.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::testing::{Authority, identity, pair, shake};
use super::*;

#[tokio::test]
async fn two_workloads_learn_who_the_other_is() {
    let (mut near, mut far) = pair(64 * 1024).await;
    assert_eq!(near.peer(), &identity("b"));
    assert_eq!(far.peer(), &identity("a"));
    for stream in [&near, &far] {
        assert_eq!(stream.cipher_suite(), "TLS13_AES_128_GCM_SHA256");
        assert_eq!(stream.key_exchange(), "X25519MLKEM768");
        assert_eq!(stream.tls_version(), "TLSv1.3");
    }
    near.write_all(b"ping").await.unwrap();
    near.flush().await.unwrap();
    let mut got = [0; 4];
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping");
    far.write_all(b"pong").await.unwrap();
    far.flush().await.unwrap();
    near.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"pong");
}

#[tokio::test]
async fn refuses_a_server_that_is_somebody_else() {
    let authority = Authority::new();
    let client = authority.credentials(&identity("a"));
    let server = authority.credentials(&identity("b"));
    let (near, far) = shake(&client, &server, &[identity("c")], 64 * 1024).await;
    let error = near.err().unwrap();
    assert_eq!((error.reason(), error.fault()), ("wrong_identity", super::super::Fault::Upstream));
    assert!(error.to_string().contains("/sa/b, expected spiffe://cluster.local/ns/default/sa/c"));
    assert_eq!(far.err().unwrap().reason(), "refused_by_peer");
}
