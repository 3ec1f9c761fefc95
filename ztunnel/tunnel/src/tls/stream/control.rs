//! Records without data: tickets, key updates in both directions, and the limit on their number.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::record::{Content, OVERHEAD};
use super::super::testing::pattern;
use super::tests::{reason, settled, wire};
#[tokio::test]
async fn session_tickets_are_dropped_by_the_client() {
    let (mut near, mut far) = settled().await;
    let ticket: Vec<_> = [4, 0, 0, 200].into_iter().chain([7; 200]).collect();
    far.outgoing.raw(Content::Handshake, &ticket);
    for piece in ticket.chunks(70) {
        far.outgoing.raw(Content::Handshake, piece);
    }
    far.outgoing
        .raw(Content::Handshake, &[&ticket[..], &ticket[..]].concat());
    far.write_all(b"!").await.unwrap();
    far.flush().await.unwrap();
    assert_eq!(near.read_u8().await.unwrap(), b'!');
}

#[tokio::test]
async fn a_key_update_is_followed_and_answered() {
    let (mut near, mut far) = settled().await;
    for round in 0..100_u8 {
        let asks = round % 2;
        far.outgoing.raw(Content::Handshake, &[24, 0, 0, 1, asks]);
        far.outgoing.next_key(&mut far.keys);
        far.write_all(&[round]).await.unwrap();
        far.flush().await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), round);
        near.write_all(&[round]).await.unwrap();
        near.flush().await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), round);
    }
}

#[tokio::test]
async fn a_key_update_is_answered_even_if_the_application_never_writes() {
    let (mut near, mut far) = settled().await;
    far.outgoing.raw(Content::Handshake, &[24, 0, 0, 1, 1]);
    far.outgoing.next_key(&mut far.keys);
    far.flush().await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(5), near.read_u8()).await;
    assert!(waiting.is_err());
    assert_eq!(wire(&mut far).await.len(), 5 + OVERHEAD);
}

#[tokio::test]
async fn many_requests_for_key_updates_make_one_answer() {
    let (mut near, mut far) = settled().await;
    for _ in 0..20 {
        far.outgoing.raw(Content::Handshake, &[24, 0, 0, 1, 1]);
        far.outgoing.next_key(&mut far.keys);
        far.flush().await.unwrap();
    }
    let waiting = tokio::time::timeout(Duration::from_millis(5), near.read_u8()).await;
    assert!(waiting.is_err());
    assert_eq!(wire(&mut far).await.len(), 5 + OVERHEAD);
}

#[tokio::test]
async fn records_that_carry_nothing_are_counted() {
    let (mut near, mut far) = settled().await;
    for _ in 0..32 {
        far.outgoing.raw(Content::Data, &[]);
        far.flush().await.unwrap();
    }
    far.write_all(b"a").await.unwrap();
    far.flush().await.unwrap();
    assert_eq!(near.read_u8().await.unwrap(), b'a');
    for _ in 0..33 {
        far.outgoing.raw(Content::Data, &[]);
        far.flush().await.unwrap();
    }
    assert_eq!(
        reason(&near.read_u8().await.unwrap_err()),
        "fruitless_records"
    );
}

#[tokio::test]
async fn a_worn_out_key_is_replaced() {
    let (mut near, mut far) = settled().await;
    near.outgoing.wear_out_after(3);
    let sent = pattern(600_000);
    let mut got = vec![0; sent.len()];
    let (wrote, read) = tokio::join!(
        async {
            for piece in sent.chunks(9_999) {
                near.write_all(piece).await?;
                near.flush().await?;
            }
            near.write_all(&sent).await?;
            near.flush().await
        },
        async {
            far.read_exact(&mut got).await?;
            assert!(got == sent);
            far.read_exact(&mut got).await
        }
    );
    wrote.unwrap();
    read.unwrap();
    assert!(got == sent);
}
