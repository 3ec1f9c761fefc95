//! Sealing and opening of single records: the limits of the format, and unique nonces.

use aws_lc_rs::aead::MAX_TAG_LEN;
use rustls::crypto::cipher::{AeadKey, Iv};

use super::*;

const CIPHERS: usize = 2;

fn secrets(cipher: usize) -> ConnectionTrafficSecrets {
    let (key, iv) = (AeadKey::from([7; 32]), Iv::from([9; 12]));
    match cipher {
        0 => ConnectionTrafficSecrets::Aes256Gcm { key, iv },
        _ => ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
    }
}

fn pair(cipher: usize) -> (Sealer, Opener) {
    (
        Sealer::new(5, secrets(cipher)).unwrap(),
        Opener::new(5, secrets(cipher)).unwrap(),
    )
}

/// A record with this inner plaintext, valid or not.
fn seal_inner(sealer: &mut Sealer, inner: &[u8]) -> Vec<u8> {
    let header = header(inner.len() + MAX_TAG_LEN).unwrap();
    let mut record = header.to_vec();
    record.extend_from_slice(inner);
    let nonce = sealer.traffic.nonce().unwrap();
    let body = &mut record[HEADER_LEN..];
    let tag = sealer
        .traffic
        .key
        .seal_in_place_separate_tag(nonce, Aad::from(header), body)
        .unwrap();
    record.extend_from_slice(tag.as_ref());
    record
}

#[test]
fn all_ways_to_seal_and_open_are_compatible() {
    for cipher in 0..CIPHERS {
        let (mut sealer, mut opener) = pair(cipher);
        for length in [0, 1, 100, MAX_CONTENT_LEN] {
            let plain: Vec<u8> = (0..length)
                .map(|at| u8::try_from(at % 250).unwrap())
                .collect();
            for way in 0..4 {
                let mut record = vec![0; length + OVERHEAD];
                if way % 2 == 0 {
                    record[HEADER_LEN..HEADER_LEN + length].copy_from_slice(&plain);
                    sealer
                        .seal_in_place(ContentType::ApplicationData, &mut record)
                        .unwrap();
                } else {
                    sealer
                        .seal_from(ContentType::ApplicationData, &plain, &mut record)
                        .unwrap();
                }
                assert_eq!(record_length(&record).unwrap(), Some(record.len()));
                let mut out = vec![0; Opener::inner_length(record.len())];
                let opened = if way < 2 {
                    let opened = opener.open_in_place(&mut record).unwrap();
                    out.copy_from_slice(&record[HEADER_LEN..HEADER_LEN + length + 1]);
                    opened
                } else {
                    opener.open_into(&record, &mut out).unwrap()
                };
                assert_eq!(opened, (ContentType::ApplicationData, length));
                assert_eq!(out[..length], plain);
            }
        }
    }
}

#[test]
fn padding_is_accepted_and_skipped() {
    for (inner, expected) in [
        (&b"abc\x17"[..], (ContentType::ApplicationData, 3)),
        (b"abc\x17\0\0\0\0", (ContentType::ApplicationData, 3)),
        (b"abc\0\x17\0", (ContentType::ApplicationData, 4)),
        (b"\x17\0\0", (ContentType::ApplicationData, 0)),
        (b"\x01\0\x15\0", (ContentType::Alert, 2)),
        (b"\x18\x16", (ContentType::Handshake, 1)),
    ] {
        let (mut sealer, mut opener) = pair(0);
        let mut record = seal_inner(&mut sealer, inner);
        assert_eq!(
            opener.open_in_place(&mut record).unwrap(),
            expected,
            "{inner:?}"
        );
    }
    let (mut sealer, mut opener) = pair(0);
    let mut long = vec![1; MAX_CONTENT_LEN];
    long.push(23);
    let record = seal_inner(&mut sealer, &long);
    let mut out = vec![0; long.len()];
    assert_eq!(
        opener.open_into(&record, &mut out).unwrap(),
        (ContentType::ApplicationData, MAX_CONTENT_LEN)
    );
    // Padded up to the limit.
    let mut short = b"abc\x17".to_vec();
    short.resize(MAX_CONTENT_LEN + 1, 0);
    let mut record = seal_inner(&mut sealer, &short);
    assert_eq!(
        opener.open_in_place(&mut record).unwrap(),
        (ContentType::ApplicationData, 3)
    );
}

#[test]
fn invalid_inner_plaintexts_are_refused() {
    let mut long = vec![1; MAX_CONTENT_LEN + 1];
    long.push(23);
    let mut padded = b"abc\x17".to_vec();
    padded.resize(MAX_CONTENT_LEN + 2, 0);
    for (inner, reason) in [
        (&[][..], "unexpected_message"),
        (&[0, 0, 0], "unexpected_message"),
        (b"abc\x14", "unexpected_message"),
        (b"abc", "unexpected_message"),
        (&long, "record_overflow"),
        (&padded, "record_overflow"),
    ] {
        let (mut sealer, mut opener) = pair(1);
        let mut record = seal_inner(&mut sealer, inner);
        let error = opener.open_in_place(&mut record).unwrap_err();
        assert_eq!(error.reason(), reason);
    }
}

#[test]
fn a_record_opens_only_in_order_and_with_its_header() {
    let (mut sealer, mut opener) = pair(0);
    let mut records = Vec::new();
    for _ in 0..3 {
        let mut record = vec![0; 10 + OVERHEAD];
        sealer
            .seal_from(ContentType::ApplicationData, &[1; 10], &mut record)
            .unwrap();
        records.push(record);
    }
    assert_ne!(
        records[0], records[1],
        "two records of the same plaintext differ"
    );
    assert!(opener.open_in_place(&mut records[0].clone()).is_ok());
    assert_eq!(
        opener.open_in_place(&mut records[2].clone()),
        Err(RecordError::Forged)
    );
    let (_, mut opener) = pair(0);
    let mut other = records[0].clone();
    other[1] = 2;
    assert_eq!(opener.open_in_place(&mut other), Err(RecordError::Forged));
    let mut sealer = Sealer::new(u64::MAX, secrets(0)).unwrap();
    let error = sealer
        .seal_from(ContentType::ApplicationData, &[], &mut [0; OVERHEAD])
        .unwrap_err();
    assert_eq!(error.reason(), "keys");
}

#[test]
fn the_nonce_is_the_iv_and_the_sequence_number() {
    let mut traffic = TrafficKey::new(0x0102_0304_0506_0708, secrets(0)).unwrap();
    let nonce = traffic.nonce().unwrap();
    assert_eq!(*nonce.as_ref(), [9, 9, 9, 9, 8, 11, 10, 13, 12, 15, 14, 1]);
    assert_eq!(traffic.sequence, 0x0102_0304_0506_0709);
}

#[test]
fn a_record_header_is_checked_as_soon_as_it_is_complete() {
    assert_eq!(record_length(&[23, 3, 3, 0]), Ok(None));
    assert_eq!(record_length(&[]), Ok(None));
    assert_eq!(record_length(&[23, 3, 3, 0, 17]), Ok(Some(22)));
    assert_eq!(
        record_length(&[23, 3, 3, 0x41, 0]),
        Ok(Some(MAX_RECORD_LEN))
    );
    assert_eq!(
        record_length(&[23, 3, 3, 0x41, 1]),
        Err(RecordError::Overflow {
            length: MAX_RECORD_LEN - HEADER_LEN + 1
        })
    );
}
