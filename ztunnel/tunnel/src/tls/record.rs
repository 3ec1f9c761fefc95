//! TLS 1.3 records (RFC 8446, section 5): sealing and opening, without I/O; the only state is a
//! key, its IV and the sequence number. Sealing reads the plaintext in place and opening writes it
//! to its destination, so that the cipher's pass over the bytes is also the copy.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::ConnectionTrafficSecrets;

use super::error::RecordError;

/// Bytes of a record's header: type, legacy version, length.
pub(super) const HEADER: usize = 5;
/// Most bytes of content in one record (RFC 8446, section 5.1).
pub(super) const MAX_CONTENT: usize = 1 << 14;
/// Bytes of the authentication tag; the same for every cipher of TLS 1.3 that is used here.
const TAG: usize = 16;
/// The bytes that sealing adds to the content: header, inner content type, tag.
pub(super) const OVERHEAD: usize = HEADER + 1 + TAG;
/// The size of a full record that we send.
pub(super) const FULL_RECORD: usize = MAX_CONTENT + OVERHEAD;
/// The largest sealed record behind its header (RFC 8446, section 5.2).
const MAX_SEALED: usize = MAX_CONTENT + 256;
/// The largest record a peer may send.
pub(super) const LARGEST_RECORD: usize = HEADER + MAX_SEALED;

/// The content type of a record (RFC 8446, section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// An alert.
    Alert,
    /// A handshake message or a part of one.
    Handshake,
    /// The application's bytes.
    Data,
}

impl Content {
    const fn byte(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::Data => 23,
        }
    }

    const fn parse(byte: u8) -> Result<Self, RecordError> {
        match byte {
            21 => Ok(Self::Alert),
            22 => Ok(Self::Handshake),
            23 => Ok(Self::Data),
            _ => Err(RecordError::Unexpected {
                what: "content type",
            }),
        }
    }
}

/// The length of the record that starts here, header included; `None` while the header is not
/// complete.
pub(super) fn record_length(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let &[kind, _, _, high, low, ..] = bytes else {
        return Ok(None);
    };
    if kind != Content::Data.byte() {
        return Err(RecordError::Unexpected {
            what: "unprotected record",
        });
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_SEALED {
        return Err(RecordError::Overflow { length });
    }
    if length < TAG + 1 {
        return Err(RecordError::Malformed { what: "record" });
    }
    Ok(Some(HEADER + length))
}

/// The key of one direction, and the number of records it was used for.
struct Traffic {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Traffic {
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
    traffic: Traffic,
}

impl Sealer {
    /// A sealer that starts at the given sequence number.
    pub(super) fn new(
        sequence: u64,
        secrets: ConnectionTrafficSecrets,
    ) -> Result<Self, RecordError> {
        Ok(Self {
            traffic: Traffic::new(sequence, secrets)?,
        })
    }

    /// How many records this key has sealed.
    pub(super) const fn sealed(&self) -> u64 {
        self.traffic.sequence
    }

    /// Seals a record whose content is already in place behind the header: `record` is exactly
    /// header, content, and space for inner type and tag.
    pub(super) fn seal_in_place(
        &mut self,
        content: Content,
        record: &mut [u8],
    ) -> Result<(), RecordError> {
        let nonce = self.traffic.nonce()?;
        let header = header(record.len() - HEADER)?;
        record[..HEADER].copy_from_slice(&header);
        let content_length = record.len() - OVERHEAD;
        let (body, tail) = record[HEADER..].split_at_mut(content_length);
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
        content: Content,
        plain: &[u8],
        record: &mut [u8],
    ) -> Result<(), RecordError> {
        let nonce = self.traffic.nonce()?;
        let header = header(record.len() - HEADER)?;
        record[..HEADER].copy_from_slice(&header);
        let (body, tail) = record[HEADER..].split_at_mut(plain.len());
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

/// The header of a record with that many bytes behind it.
fn header(sealed: usize) -> Result<[u8; HEADER], RecordError> {
    let length = u16::try_from(sealed).map_err(|_long| RecordError::Keys {
        what: "record too long",
    })?;
    let [high, low] = length.to_be_bytes();
    // The legacy version is fixed (RFC 8446, section 5.2).
    Ok([Content::Data.byte(), 3, 3, high, low])
}

/// Opens records.
pub(super) struct Opener {
    traffic: Traffic,
}

impl Opener {
    /// An opener that starts at the given sequence number.
    pub(super) fn new(
        sequence: u64,
        secrets: ConnectionTrafficSecrets,
    ) -> Result<Self, RecordError> {
        Ok(Self {
            traffic: Traffic::new(sequence, secrets)?,
        })
    }

    /// How many bytes a complete record needs at its destination: its content, the inner type and
    /// the padding.
    pub(super) const fn inner_length(record_length: usize) -> usize {
        record_length - HEADER - TAG
    }

    /// Opens a complete record in place. The content is at `record[HEADER..][..length]`.
    pub(super) fn open_in_place(
        &mut self,
        record: &mut [u8],
    ) -> Result<(Content, usize), RecordError> {
        let nonce = self.traffic.nonce()?;
        let (head, body) = record.split_at_mut(HEADER);
        let (inner, tag) = body.split_at_mut(body.len() - TAG);
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
    ) -> Result<(Content, usize), RecordError> {
        let nonce = self.traffic.nonce()?;
        let (head, body) = record.split_at(HEADER);
        let (inner, tag) = body.split_at(body.len() - TAG);
        self.traffic
            .key
            .open_separate_gather(nonce, Aad::from(head), inner, tag, out)
            .map_err(|_unspecified| RecordError::Forged)?;
        unpad(out)
    }
}

/// Finds the content type behind the content and skips the zeros of the padding (RFC 8446, section
/// 5.4).
fn unpad(inner: &[u8]) -> Result<(Content, usize), RecordError> {
    let Some(last) = inner.iter().rposition(|byte| *byte != 0) else {
        return Err(RecordError::Unexpected {
            what: "record without a content type",
        });
    };
    if last > MAX_CONTENT {
        return Err(RecordError::Overflow { length: last });
    }
    Ok((Content::parse(inner[last])?, last))
}

#[cfg(test)]
mod tests;
