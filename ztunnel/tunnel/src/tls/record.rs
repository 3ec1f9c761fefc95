//! TLS 1.3 records (RFC 8446, section 5): sealing and opening, without I/O. The only state is a
//! key, its IV and the sequence number. The cipher reads from the source and writes to the
//! destination, so that no copy is needed before or after it.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::ConnectionTrafficSecrets;

use super::error::RecordError;

/// The length of a record's header in bytes: type, legacy version, length.
pub(super) const HEADER_LEN: usize = 5;
/// The limit of content in one record, in bytes (RFC 8446, section 5.1).
pub(super) const MAX_CONTENT_LEN: usize = 1 << 14;
/// The length of the authentication tag in bytes, for each of the ciphers used here.
const TAG_LEN: usize = 16;
/// The bytes that sealing adds to the content: header, inner content type, tag.
pub(super) const OVERHEAD: usize = HEADER_LEN + 1 + TAG_LEN;
/// The length of a full record that we send.
pub(super) const FULL_RECORD_LEN: usize = MAX_CONTENT_LEN + OVERHEAD;
/// The limit of a record after its header, in bytes (RFC 8446, section 5.2).
const MAX_SEALED_LEN: usize = MAX_CONTENT_LEN + 256;
/// The limit of a record that a peer may send, in bytes.
pub(super) const MAX_RECORD_LEN: usize = HEADER_LEN + MAX_SEALED_LEN;

/// The content type of a record (RFC 8446, section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentType {
    /// An alert.
    Alert,
    /// A handshake message or a part of one.
    Handshake,
    /// Bytes of the application.
    ApplicationData,
}

impl ContentType {
    const fn byte(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::ApplicationData => 23,
        }
    }

    const fn parse(byte: u8) -> Result<Self, RecordError> {
        match byte {
            21 => Ok(Self::Alert),
            22 => Ok(Self::Handshake),
            23 => Ok(Self::ApplicationData),
            _ => Err(RecordError::Unexpected {
                what: "content type",
            }),
        }
    }
}

/// The length of the record at the start of `bytes`, header included; `None` while its header is
/// not complete.
pub(super) fn record_length(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let &[kind, _, _, high, low, ..] = bytes else {
        return Ok(None);
    };
    if kind != ContentType::ApplicationData.byte() {
        return Err(RecordError::Unexpected {
            what: "unprotected record",
        });
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_SEALED_LEN {
        return Err(RecordError::Overflow { length });
    }
    if length < TAG_LEN + 1 {
        return Err(RecordError::Malformed { what: "record" });
    }
    Ok(Some(HEADER_LEN + length))
}

/// The key of one direction, and the sequence number of its next record.
struct TrafficKey {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl TrafficKey {
    fn new(sequence: u64, secrets: ConnectionTrafficSecrets) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => {
                return Err(RecordError::Keys {
                    what: "unknown cipher",
                });
            }
        };
        let key =
            UnboundKey::new(algorithm, key.as_ref()).map_err(|_unspecified| RecordError::Keys {
                what: "wrong key length",
            })?;
        let iv = iv
            .as_ref()
            .try_into()
            .map_err(|_length| RecordError::Keys {
                what: "wrong IV length",
            })?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv,
            sequence,
        })
    }

    /// The nonce of the next record (RFC 8446, section 5.3). Never returns a nonce twice.
    fn nonce(&mut self) -> Result<Nonce, RecordError> {
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(RecordError::Keys {
            what: "sequence exhausted",
        })?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Seals records.
pub(super) struct Sealer {
    traffic: TrafficKey,
}

impl Sealer {
    /// A sealer that starts at the given sequence number.
    pub(super) fn new(
        sequence: u64,
        secrets: ConnectionTrafficSecrets,
    ) -> Result<Self, RecordError> {
        Ok(Self {
            traffic: TrafficKey::new(sequence, secrets)?,
        })
    }

    /// The number of records that this key has sealed.
    pub(super) const fn sealed_records(&self) -> u64 {
        self.traffic.sequence
    }

    /// Seals a record whose content is already in `record`: space for the header, the content, and
    /// space for inner type and tag.
    pub(super) fn seal_in_place(
        &mut self,
        content: ContentType,
        record: &mut [u8],
    ) -> Result<(), RecordError> {
        let nonce = self.traffic.nonce()?;
        let header = header(record.len() - HEADER_LEN)?;
        record[..HEADER_LEN].copy_from_slice(&header);
        let content_length = record.len() - OVERHEAD;
        let (body, tail) = record[HEADER_LEN..].split_at_mut(content_length);
        self.traffic
            .key
            .seal_in_place_scatter(nonce, Aad::from(header), body, &[content.byte()], tail)
            .map_err(|_unspecified| RecordError::Keys {
                what: "sealing failed",
            })
    }

    /// Seals `plain` into `record`, which is exactly [`OVERHEAD`] longer.
    pub(super) fn seal_from(
        &mut self,
        content: ContentType,
        plain: &[u8],
        record: &mut [u8],
    ) -> Result<(), RecordError> {
        let nonce = self.traffic.nonce()?;
        let header = header(record.len() - HEADER_LEN)?;
        record[..HEADER_LEN].copy_from_slice(&header);
        let (body, tail) = record[HEADER_LEN..].split_at_mut(plain.len());
        self.traffic
            .key
            .seal_out_of_place_scatter(
                nonce,
                Aad::from(header),
                plain,
                body,
                &[content.byte()],
                tail,
            )
            .map_err(|_unspecified| RecordError::Keys {
                what: "sealing failed",
            })
    }
}

/// The header of a record with that many bytes after it.
fn header(sealed: usize) -> Result<[u8; HEADER_LEN], RecordError> {
    let length = u16::try_from(sealed).map_err(|_long| RecordError::Keys {
        what: "record too long",
    })?;
    let [high, low] = length.to_be_bytes();
    // The legacy version is fixed (RFC 8446, section 5.2).
    Ok([ContentType::ApplicationData.byte(), 3, 3, high, low])
}

/// Opens records.
pub(super) struct Opener {
    traffic: TrafficKey,
}

impl Opener {
    /// An opener that starts at the given sequence number.
    pub(super) fn new(
        sequence: u64,
        secrets: ConnectionTrafficSecrets,
    ) -> Result<Self, RecordError> {
        Ok(Self {
            traffic: TrafficKey::new(sequence, secrets)?,
        })
    }

    /// The space that a complete record needs at its destination, in bytes: its content, the inner
    /// type and the padding.
    pub(super) const fn inner_length(record_length: usize) -> usize {
        record_length - HEADER_LEN - TAG_LEN
    }

    /// Opens a complete record in place. The content is at `record[HEADER_LEN..][..length]`.
    pub(super) fn open_in_place(
        &mut self,
        record: &mut [u8],
    ) -> Result<(ContentType, usize), RecordError> {
        let nonce = self.traffic.nonce()?;
        let (head, body) = record.split_at_mut(HEADER_LEN);
        let (inner, tag) = body.split_at_mut(body.len() - TAG_LEN);
        self.traffic
            .key
            .open_in_place_separate_tag(nonce, Aad::from(head), tag, inner)
            .map_err(|_unspecified| RecordError::Forged)?;
        unpad(inner)
    }

    /// Opens a complete record into `out`, which has exactly [`Self::inner_length`] bytes. The
    /// content is at its front; the bytes behind it are unspecified.
    pub(super) fn open_into(
        &mut self,
        record: &[u8],
        out: &mut [u8],
    ) -> Result<(ContentType, usize), RecordError> {
        let nonce = self.traffic.nonce()?;
        let (head, body) = record.split_at(HEADER_LEN);
        let (inner, tag) = body.split_at(body.len() - TAG_LEN);
        self.traffic
            .key
            .open_separate_gather(nonce, Aad::from(head), inner, tag, out)
            .map_err(|_unspecified| RecordError::Forged)?;
        unpad(out)
    }
}

/// Finds the content type, which is the last byte before the zeros of the padding. Content, type and
/// padding together have a limit (RFC 8446, section 5.4).
fn unpad(inner: &[u8]) -> Result<(ContentType, usize), RecordError> {
    if inner.len() > MAX_CONTENT_LEN + 1 {
        return Err(RecordError::Overflow {
            length: inner.len(),
        });
    }
    let Some(last) = inner.iter().rposition(|byte| *byte != 0) else {
        return Err(RecordError::Unexpected {
            what: "record without a content type",
        });
    };
    Ok((ContentType::parse(inner[last])?, last))
}

#[cfg(test)]
mod tests;
