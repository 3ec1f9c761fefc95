//! Records without data: session tickets, key updates in both directions, and their limit.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::record::{ContentType, OVERHEAD};
use super::super::testing::pattern;
use super::tests::{established_pair, reason, sealed_bytes};

#[tokio::test]
async fn session_tickets_are_dropped_by_the_client() {
    let (mut local, mut remote) = established_pair().await;
    let ticket: Vec<_> = [4, 0, 0, 200].into_iter().chain([7; 200]).collect();
    remote.outgoing.raw(ContentType::Handshake, &ticket);
    for piece in ticket.chunks(70) {
        remote.outgoing.raw(ContentType::Handshake, piece);
    }
    remote
        .outgoing
        .raw(ContentType::Handshake, &[&ticket[..], &ticket[..]].concat());
    remote.write_all(b"!").await.unwrap();
    remote.flush().await.unwrap();
    assert_eq!(local.read_u8().await.unwrap(), b'!');
}

#[tokio::test]
async fn a_key_update_changes_the_key_and_is_answered() {
    let (mut local, mut remote) = established_pair().await;
    for round in 0..100_u8 {
        let update_requested = round % 2;
        remote
            .outgoing
            .raw(ContentType::Handshake, &[24, 0, 0, 1, update_requested]);
        remote.outgoing.next_key(&mut remote.keys);
        remote.write_all(&[round]).await.unwrap();
        remote.flush().await.unwrap();
        assert_eq!(local.read_u8().await.unwrap(), round);
        local.write_all(&[round]).await.unwrap();
        local.flush().await.unwrap();
        assert_eq!(remote.read_u8().await.unwrap(), round);
    }
}

#[tokio::test]
async fn a_key_update_is_answered_even_if_the_application_never_writes() {
    let (mut local, mut remote) = established_pair().await;
    remote
        .outgoing
        .raw(ContentType::Handshake, &[24, 0, 0, 1, 1]);
    remote.outgoing.next_key(&mut remote.keys);
    remote.flush().await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(5), local.read_u8()).await;
    assert!(waiting.is_err());
    assert_eq!(sealed_bytes(&mut remote).await.len(), 5 + OVERHEAD);
}

#[tokio::test]
async fn many_requests_for_key_updates_get_one_answer() {
    let (mut local, mut remote) = established_pair().await;
    for _ in 0..20 {
        remote
            .outgoing
            .raw(ContentType::Handshake, &[24, 0, 0, 1, 1]);
        remote.outgoing.next_key(&mut remote.keys);
        remote.flush().await.unwrap();
    }
    let waiting = tokio::time::timeout(Duration::from_millis(5), local.read_u8()).await;
    assert!(waiting.is_err());
    assert_eq!(sealed_bytes(&mut remote).await.len(), 5 + OVERHEAD);
}

#[tokio::test]
async fn consecutive_records_without_data_are_limited() {
    let (mut local, mut remote) = established_pair().await;
    for _ in 0..32 {
        remote.outgoing.raw(ContentType::ApplicationData, &[]);
        remote.flush().await.unwrap();
    }
    remote.write_all(b"a").await.unwrap();
    remote.flush().await.unwrap();
    assert_eq!(local.read_u8().await.unwrap(), b'a');
    for _ in 0..33 {
        remote.outgoing.raw(ContentType::ApplicationData, &[]);
        remote.flush().await.unwrap();
    }
    assert_eq!(
        reason(&local.read_u8().await.unwrap_err()),
        "fruitless_records"
    );
}

#[tokio::test]
async fn a_key_is_updated_at_its_record_limit() {
    let (mut local, mut remote) = established_pair().await;
    local.outgoing.set_key_limit(3);
    let sent = pattern(600_000);
    let mut got = vec![0; sent.len()];
    let (wrote, read) = tokio::join!(
        async {
            for piece in sent.chunks(9_999) {
                local.write_all(piece).await?;
                local.flush().await?;
            }
            local.write_all(&sent).await?;
            local.flush().await
        },
        async {
            remote.read_exact(&mut got).await?;
            assert!(got == sent);
            remote.read_exact(&mut got).await
        }
    );
    wrote.unwrap();
    read.unwrap();
    assert!(got == sent);
}
