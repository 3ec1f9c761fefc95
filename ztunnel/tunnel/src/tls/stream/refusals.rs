//! Truncated sessions, damaged records and input that a peer must not send: each has an error of
//! its own, and none returns data.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::record::{ContentType, OVERHEAD};
use super::super::testing::pattern;
use super::tests::{established_pair, reason};
use super::*;

#[tokio::test]
async fn a_close_without_close_notify_is_an_error() {
    let (mut local, mut remote) = established_pair().await;
    local.write_all(b"half a sen").await.unwrap();
    local.flush().await.unwrap();
    local.io.shutdown().await.unwrap();
    let mut got = Vec::new();
    let error = remote.read_to_end(&mut got).await.unwrap_err();
    assert_eq!(got, b"half a sen");
    assert_eq!(
        (error.kind(), reason(&error)),
        (io::ErrorKind::UnexpectedEof, "truncated")
    );
    let error = remote.read_u8().await.unwrap_err();
    assert_eq!(reason(&error), "truncated", "the error stays");
}

#[tokio::test]
async fn a_damaged_record_ends_the_session_on_both_sides() {
    let clean = 1000 + OVERHEAD;
    for at in [5, 6, 500, clean - 17, clean - 16, clean - 1] {
        for read_size in [2000, 10] {
            let (mut local, mut remote) = established_pair().await;
            local.write_all(&pattern(1000)).await.unwrap();
            let mut sealed = local.outgoing.pending().unwrap().to_vec();
            sealed[at] ^= 1;
            local.io.write_all(&sealed).await.unwrap();
            local.outgoing.sent(sealed.len());
            let error = remote.read(&mut vec![0; read_size]).await.unwrap_err();
            assert_eq!(
                (error.kind(), reason(&error)),
                (io::ErrorKind::InvalidData, "forged_record")
            );
            assert!(remote.write_all(b"x").await.is_err());
            let alert = local.read_u8().await.unwrap_err();
            // For a client that has not received a record yet, any alert is a refusal.
            assert_eq!(reason(&alert), "refused_by_peer");
            assert!(alert.to_string().contains("BadRecordMac"), "{alert}");
        }
    }
}

#[tokio::test]
async fn data_before_a_damaged_record_is_delivered() {
    let (mut local, mut remote) = established_pair().await;
    local.write_all(&pattern(20_000)).await.unwrap();
    let mut sealed = local.outgoing.pending().unwrap().to_vec();
    *sealed.last_mut().unwrap() ^= 1;
    local.io.write_all(&sealed).await.unwrap();
    let mut got = vec![0; 40_000];
    assert_eq!(remote.read(&mut got).await.unwrap(), 16_384);
    assert_eq!(
        reason(&remote.read(&mut got).await.unwrap_err()),
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
        let (mut local, mut remote) = established_pair().await;
        local.io.write_all(bytes).await.unwrap();
        let error = remote.read_u8().await.unwrap_err();
        assert_eq!(reason(&error), expected, "{bytes:?}");
    }
}

#[tokio::test]
async fn messages_that_no_peer_may_send_are_refused() {
    let ticket = [4, 0, 0, 3, 1, 2, 3];
    for (content, bytes, expected) in [
        (
            ContentType::Handshake,
            &[24, 0, 0, 1, 2][..],
            "malformed_message",
        ),
        (
            ContentType::Handshake,
            &[24, 0, 0, 2, 0, 0],
            "malformed_message",
        ),
        (
            ContentType::Handshake,
            &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0],
            "unexpected_message",
        ),
        (
            ContentType::Handshake,
            &[13, 0, 0, 1, 0],
            "unexpected_message",
        ),
        (
            ContentType::Handshake,
            &[1, 0xff, 0xff, 0xff],
            "unexpected_message",
        ),
        (ContentType::Handshake, &[], "unexpected_message"),
        (ContentType::Handshake, &ticket, "unexpected_message"),
        (ContentType::Alert, &[2], "malformed_message"),
        (ContentType::Alert, &[2, 20, 0], "malformed_message"),
        (ContentType::Alert, &[2, 80], "alert"),
    ] {
        // Towards the server, because a server gets no tickets.
        let (mut local, mut remote) = established_pair().await;
        local.outgoing.raw(content, bytes);
        local.flush().await.unwrap();
        let error = remote.read_u8().await.unwrap_err();
        assert_eq!(reason(&error), expected, "{bytes:?}");
    }
}

#[tokio::test]
async fn data_between_the_parts_of_a_message_is_refused() {
    let (mut local, mut remote) = established_pair().await;
    remote
        .outgoing
        .raw(ContentType::Handshake, &[4, 0, 0, 9, 1]);
    remote.write_all(b"data").await.unwrap();
    remote.flush().await.unwrap();
    assert_eq!(
        reason(&local.read_u8().await.unwrap_err()),
        "unexpected_message"
    );
}

#[tokio::test]
async fn a_message_above_the_limit_is_refused() {
    let (mut local, mut remote) = established_pair().await;
    remote.outgoing.raw(ContentType::Handshake, &[4, 1, 0, 1]);
    remote.flush().await.unwrap();
    assert_eq!(
        reason(&local.read_u8().await.unwrap_err()),
        "malformed_message"
    );
}

/// The data that a reader gets from the bytes on the wire, and its final result.
async fn read_all(remote: &mut Stream<tokio::io::DuplexStream>) -> (Vec<u8>, io::Result<()>) {
    let mut got = Vec::new();
    let mut piece = vec![0; 20_000];
    loop {
        match remote.read(&mut piece).await {
            Ok(0) => return (got, Ok(())),
            Ok(count) => got.extend_from_slice(&piece[..count]),
            Err(error) => return (got, Err(error)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn damaged_or_truncated_bytes_never_deliver_wrong_data(
        length in 1..60_000_usize,
        at in any::<prop::sample::Index>(),
        (damage, cut) in (1..=255_u8, any::<bool>()),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut local, mut remote) = established_pair().await;
            local.write_all(&pattern(length)).await.unwrap();
            local.outgoing.alert(AlertDescription::CloseNotify).unwrap();
            let mut sealed = local.outgoing.pending().unwrap().to_vec();
            let at = at.index(sealed.len());
            sealed[at] ^= damage;
            if cut {
                sealed.truncate(at);
            }
            local.io.write_all(&sealed).await.unwrap();
            local.io.shutdown().await.unwrap();
            let (got, end) = read_all(&mut remote).await;
            assert!(end.is_err());
            assert!(got == pattern(length)[..got.len()]);
        });
    }

    #[test]
    fn any_record_after_the_handshake_is_handled_or_refused(
        records in prop::collection::vec(
            (0..3_u8, prop::collection::vec(prop_oneof![Just(24_u8), Just(4), 0..3_u8, any::<u8>()], 0..12)),
            1..40,
        ),
        towards_client in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut local, mut remote) = established_pair().await;
            let (from, to) =
                if towards_client { (&mut remote, &mut local) } else { (&mut local, &mut remote) };
            for (kind, body) in &records {
                let content = match kind {
                    0 => ContentType::Alert,
                    1 => ContentType::Handshake,
                    _ => ContentType::ApplicationData,
                };
                from.outgoing.raw(content, body);
                from.flush().await.unwrap();
            }
            from.io.shutdown().await.unwrap();
            let _handled_or_refused = read_all(to).await;
            assert!(to.outgoing.held() <= super::super::buffer::SMALL);
        });
    }
}
