//! Ends, damage and everything a peer must not send: each has its own error and none is data.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::record::{Content, OVERHEAD};
use super::super::testing::pattern;
use super::tests::{reason, settled};
use super::*;

#[tokio::test]
async fn a_cut_connection_is_not_an_end() {
    let (mut near, mut far) = settled().await;
    near.write_all(b"half a sen").await.unwrap();
    near.flush().await.unwrap();
    near.io.shutdown().await.unwrap();
    let mut got = Vec::new();
    let error = far.read_to_end(&mut got).await.unwrap_err();
    assert_eq!(got, b"half a sen");
    assert_eq!(
        (error.kind(), reason(&error)),
        (io::ErrorKind::UnexpectedEof, "truncated")
    );
    let error = far.read_u8().await.unwrap_err();
    assert_eq!(reason(&error), "truncated", "the error stays");
}

#[tokio::test]
async fn a_forged_record_ends_the_session_on_both_sides() {
    let clean = 1000 + OVERHEAD;
    for at in [5, 6, 500, clean - 17, clean - 16, clean - 1] {
        for room in [2000, 10] {
            let (mut near, mut far) = settled().await;
            near.write_all(&pattern(1000)).await.unwrap();
            let mut sealed = near.outgoing.pending().unwrap().to_vec();
            sealed[at] ^= 1;
            near.io.write_all(&sealed).await.unwrap();
            near.outgoing.sent(sealed.len());
            let error = far.read(&mut vec![0; room]).await.unwrap_err();
            assert_eq!(
                (error.kind(), reason(&error)),
                (io::ErrorKind::InvalidData, "forged_record")
            );
            assert!(far.write_all(b"x").await.is_err());
            let told = near.read_u8().await.unwrap_err();
            // To a client that has heard nothing yet, any alert means a refusal.
            assert_eq!(reason(&told), "refused_by_peer");
            assert!(told.to_string().contains("BadRecordMac"), "{told}");
        }
    }
}

#[tokio::test]
async fn good_data_before_a_forged_record_is_delivered() {
    let (mut near, mut far) = settled().await;
    near.write_all(&pattern(20_000)).await.unwrap();
    let mut sealed = near.outgoing.pending().unwrap().to_vec();
    *sealed.last_mut().unwrap() ^= 1;
    near.io.write_all(&sealed).await.unwrap();
    let mut got = vec![0; 40_000];
    assert_eq!(far.read(&mut got).await.unwrap(), 16_384);
    assert_eq!(
        reason(&far.read(&mut got).await.unwrap_err()),
        "forged_record"
    );
}

#[tokio::test]
async fn records_that_no_peer_may_send_are_refused() {
    for (bytes, expected) in [
        (&[23, 3, 3, 0xff, 0xff][..], "record_overflow"),
        (&[23, 3, 3, 0x41, 0x01], "record_overflow"),
        (&[23, 3, 3, 0, 0], "malformed_message"),
        (&[23, 3, 3, 0, 16], "malformed_message"),
        (&[20, 3, 3, 0, 1], "unexpected_message"),
        (&[21, 3, 3, 0, 2], "unexpected_message"),
        (&[22, 3, 3, 0, 50], "unexpected_message"),
        (b"GET / ", "unexpected_message"),
    ] {
        let (mut near, mut far) = settled().await;
        near.io.write_all(bytes).await.unwrap();
        let error = far.read_u8().await.unwrap_err();
        assert_eq!(reason(&error), expected, "{bytes:?}");
    }
}

#[tokio::test]
async fn messages_that_no_peer_may_send_are_refused() {
    let ticket = [4, 0, 0, 3, 1, 2, 3];
    for (content, bytes, expected) in [
        (
            Content::Handshake,
            &[24, 0, 0, 1, 2][..],
            "malformed_message",
        ),
        (
            Content::Handshake,
            &[24, 0, 0, 2, 0, 0],
            "malformed_message",
        ),
        (
            Content::Handshake,
            &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0],
            "unexpected_message",
        ),
        (Content::Handshake, &[13, 0, 0, 1, 0], "unexpected_message"),
        (
            Content::Handshake,
            &[1, 0xff, 0xff, 0xff],
            "unexpected_message",
        ),
        (Content::Handshake, &[], "unexpected_message"),
        (Content::Handshake, &ticket, "unexpected_message"),
        (Content::Alert, &[2], "malformed_message"),
        (Content::Alert, &[2, 20, 0], "malformed_message"),
        (Content::Alert, &[2, 80], "alert"),
    ] {
        // Towards the server, which gets no tickets.
        let (mut near, mut far) = settled().await;
        near.outgoing.raw(content, bytes);
        near.flush().await.unwrap();
        let error = far.read_u8().await.unwrap_err();
        assert_eq!(reason(&error), expected, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_message_in_pieces_must_not_be_interrupted() {
    let (mut near, mut far) = settled().await;
    far.outgoing.raw(Content::Handshake, &[4, 0, 0, 9, 1]);
    far.write_all(b"data").await.unwrap();
    far.flush().await.unwrap();
    assert_eq!(
        reason(&near.read_u8().await.unwrap_err()),
        "unexpected_message"
    );
}

#[tokio::test]
async fn an_endless_message_is_refused() {
    let (mut near, mut far) = settled().await;
    far.outgoing.raw(Content::Handshake, &[4, 1, 0, 1]);
    far.flush().await.unwrap();
    assert_eq!(
        reason(&near.read_u8().await.unwrap_err()),
        "malformed_message"
    );
}
