//! Which issued certificates are usable.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::testing::{Leaf, TestCa, handshake_pair, identity};
use super::*;

/// A certificate for `name` whose chain has at least `length` bytes.
fn issued(ca: &TestCa, name: &str, length: usize) -> Issued {
    let mut issued = ca.issue(&Leaf::of(&identity(name)));
    let more = issued.roots[0].clone();
    let mut total: usize = issued.chain.iter().map(|one| one.len()).sum();
    while total < length {
        total += more.len();
        issued.chain.push(more.clone());
    }
    issued
}

#[tokio::test]
async fn a_chain_at_the_limit_is_accepted_by_both_sides() {
    let ca = TestCa::new();
    let credentials = |name| {
        let issued = issued(&ca, name, CHAIN_LIMIT - 1000);
        Credentials::new(&identity(name), issued, &Revocations::default()).unwrap()
    };
    let (client, server) = (credentials("a"), credentials("b"));
    let (local, remote) = handshake_pair(&client, &server, &[identity("b")], 1 << 20).await;
    let (mut local, mut remote) = (local.unwrap(), remote.unwrap());
    local.write_all(b"ping").await.unwrap();
    local.flush().await.unwrap();
    let mut got = [0; 4];
    remote.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"ping");
}

#[test]
fn a_chain_that_no_peer_would_accept_is_unusable() {
    let ca = TestCa::new();
    for length in [CHAIN_LIMIT + 1, 300 * 1024] {
        let issued = issued(&ca, "a", length);
        let error = Credentials::new(&identity("a"), issued, &Revocations::default()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("more than the 49152"), "{text}");
    }
}
