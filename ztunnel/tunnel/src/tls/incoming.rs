//! The receiving direction of a session, without I/O: sealed records in, plaintext out.
//!
//! Records are opened directly into the reader's memory if they fit, else in place and then copied
//! out in parts. Post-handshake messages (key updates, session tickets) and alerts are handled
//! here.

use std::ops::Range;

use rustls::AlertDescription;
use tokio::io::ReadBuf;

use super::buffer::{Buffer, LARGE};
use super::error::{RecordError, Role};
use super::keys::KeySchedule;
use super::outgoing::Outgoing;
use super::record::{ContentType, HEADER_LEN, Opener, record_length};

/// The limit of consecutive records without application data (empty records, tickets, key updates).
const MAX_RECORDS_WITHOUT_DATA: u8 = 32;
/// The limit of a post-handshake message, in bytes: a session ticket has about 300.
const MAX_MESSAGE_LEN: usize = 1 << 16;
/// With less free space behind the received bytes, they are moved to the front before the next
/// read.
const MIN_READ_SPACE: usize = LARGE / 4;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// Whether the peer may still send.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PeerSide {
    /// The peer may send.
    Open,
    /// The peer has sent close_notify.
    Closed,
}

/// Why [`Incoming::read`] stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The reader's buffer is full.
    Full,
    /// No complete record is left: read from the socket.
    NeedsInput,
    /// The peer has sent close_notify.
    Closed,
}

/// The receiving direction of a session.
pub(super) struct Incoming {
    opener: Opener,
    buffer: Option<Buffer>,
    /// Received sealed bytes: `buffer[start..end]`.
    start: usize,
    end: usize,
    /// Plaintext that did not fit the reader's buffer, before `start`.
    opened: Range<usize>,
    /// The first part of a handshake message that continues in the next record.
    message: Vec<u8>,
    records_without_data: u8,
    /// Whether a record was opened before: an alert in a client's first record means that the
    /// server refused its certificate.
    received_record: bool,
    peer_side: PeerSide,
}

impl Incoming {
    /// Starts with the first traffic key and the bytes that were received after the handshake.
    pub(super) fn new(opener: Opener, received_bytes: &[u8]) -> Result<Self, RecordError> {
        let mut incoming = Self {
            opener,
            buffer: None,
            start: 0,
            end: 0,
            opened: 0..0,
            message: Vec::new(),
            records_without_data: 0,
            received_record: false,
            peer_side: PeerSide::Open,
        };
        if !received_bytes.is_empty() {
            incoming
                .buffer
                .get_or_insert_with(Buffer::large)
                .get_mut(..received_bytes.len())
                .ok_or(RecordError::Overflow {
                    length: received_bytes.len(),
                })?
                .copy_from_slice(received_bytes);
            incoming.end = received_bytes.len();
        }
        Ok(incoming)
    }

    /// Fills the reader's buffer from the received records.
    pub(super) fn read(
        &mut self,
        keys: &mut KeySchedule,
        outgoing: &mut Outgoing,
        out: &mut ReadBuf<'_>,
    ) -> Result<Stop, RecordError> {
        loop {
            self.copy_opened(out);
            if out.remaining() == 0 {
                return Ok(Stop::Full);
            }
            if self.peer_side == PeerSide::Closed {
                self.buffer = None;
                return Ok(Stop::Closed);
            }
            let Some(buffer) = &mut self.buffer else {
                return Ok(Stop::NeedsInput);
            };
            let received_bytes = &mut buffer[self.start..self.end];
            let length = match record_length(received_bytes)? {
                Some(length) if length <= received_bytes.len() => length,
                _ => {
                    self.release_if_empty();
                    return Ok(Stop::NeedsInput);
                }
            };
            let record = &mut received_bytes[..length];
            let inner = Opener::inner_length(length);
            let at = self.start + HEADER_LEN;
            self.start += length;
            if out.remaining() >= inner {
                let target = out.initialize_unfilled_to(inner);
                let (content, count) = self.opener.open_into(record, target)?;
                if content == ContentType::ApplicationData && self.message.is_empty() {
                    out.advance(count);
                    self.count_record(count)?;
                } else {
                    // Rare, so the copy does not matter.
                    let body = target[..count].to_vec();
                    self.handle_control(keys, outgoing, content, &body)?;
                }
            } else {
                let (content, count) = self.opener.open_in_place(record)?;
                if content == ContentType::ApplicationData && self.message.is_empty() {
                    self.opened = at..at + count;
                    self.count_record(count)?;
                } else {
                    let body = record[HEADER_LEN..HEADER_LEN + count].to_vec();
                    self.handle_control(keys, outgoing, content, &body)?;
                }
            }
        }
    }

    /// The buffer space for the next read from the socket.
    pub(super) fn space(&mut self) -> &mut [u8] {
        let buffer = self.buffer.get_or_insert_with(Buffer::large);
        if buffer.len() < LARGE {
            let mut large = Buffer::large();
            let kept = self.end - self.start;
            large[..kept].copy_from_slice(&buffer[self.start..self.end]);
            *buffer = large;
            self.start = 0;
            self.end = kept;
        } else if buffer.len() - self.end < MIN_READ_SPACE {
            buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut buffer[self.end..]
    }

    /// Records that the socket wrote that many bytes into [`Self::space`].
    pub(super) const fn received(&mut self, count: usize) {
        self.end += count;
    }

    /// Called when the socket has no bytes: keeps no more memory than the received bytes need.
    pub(super) fn shrink(&mut self) {
        self.release_if_empty();
        if let Some(buffer) = &mut self.buffer
            && self.opened.is_empty()
            && buffer.shrink(self.start..self.end)
        {
            self.end -= self.start;
            self.start = 0;
        }
    }

    fn release_if_empty(&mut self) {
        if self.start == self.end && self.opened.is_empty() {
            self.buffer = None;
            self.start = 0;
            self.end = 0;
        }
    }

    fn copy_opened(&mut self, out: &mut ReadBuf<'_>) {
        if let Some(buffer) = &self.buffer
            && !self.opened.is_empty()
        {
            let count = self.opened.len().min(out.remaining());
            out.put_slice(&buffer[self.opened.start..self.opened.start + count]);
            self.opened.start += count;
            self.release_if_empty();
        }
    }

    const fn count_record(&mut self, content: usize) -> Result<(), RecordError> {
        self.received_record = true;
        if content > 0 {
            self.records_without_data = 0;
            return Ok(());
        }
        self.records_without_data += 1;
        if self.records_without_data > MAX_RECORDS_WITHOUT_DATA {
            return Err(RecordError::NoData {
                count: self.records_without_data,
            });
        }
        Ok(())
    }

    fn handle_control(
        &mut self,
        keys: &mut KeySchedule,
        outgoing: &mut Outgoing,
        content: ContentType,
        body: &[u8],
    ) -> Result<(), RecordError> {
        let first = !self.received_record;
        self.count_record(0)?;
        match content {
            // The parts of a message must not be interleaved with other records (RFC 8446, section
            // 5.1).
            ContentType::ApplicationData => Err(RecordError::Unexpected {
                what: "data record inside a handshake message",
            }),
            ContentType::Alert if !self.message.is_empty() => Err(RecordError::Unexpected {
                what: "alert inside a handshake message",
            }),
            ContentType::Alert => self.handle_alert(keys.role(), first, body),
            ContentType::Handshake if body.is_empty() => Err(RecordError::Unexpected {
                what: "empty handshake record",
            }),
            ContentType::Handshake => {
                self.message.extend_from_slice(body);
                let mut messages = std::mem::take(&mut self.message);
                let used = self.handle_messages(keys, outgoing, &messages)?;
                messages.drain(..used);
                if messages.is_empty() {
                    return Ok(());
                }
                self.message = messages;
                Ok(())
            }
        }
    }

    fn handle_alert(&mut self, role: Role, first: bool, body: &[u8]) -> Result<(), RecordError> {
        let &[_level, code] = body else {
            return Err(RecordError::Malformed { what: "alert" });
        };
        match AlertDescription::from(code) {
            AlertDescription::CloseNotify => {
                self.peer_side = PeerSide::Closed;
                Ok(())
            }
            // Not an error (RFC 8446, section 6.1); close_notify follows.
            AlertDescription::UserCanceled => Ok(()),
            alert if first && role == Role::Client => Err(RecordError::Rejected { alert }),
            alert => Err(RecordError::Alert { alert }),
        }
    }

    /// Handles the complete messages and returns their length in bytes.
    fn handle_messages(
        &mut self,
        keys: &mut KeySchedule,
        outgoing: &mut Outgoing,
        bytes: &[u8],
    ) -> Result<usize, RecordError> {
        let mut rest = bytes;
        while let &[kind, high, middle, low, ref behind @ ..] = rest {
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            let permitted =
                kind == KEY_UPDATE || (kind == NEW_SESSION_TICKET && keys.role() == Role::Client);
            if !permitted {
                return Err(RecordError::Unexpected {
                    what: "handshake message",
                });
            }
            if length > MAX_MESSAGE_LEN || (kind == KEY_UPDATE && length != 1) {
                return Err(RecordError::Malformed {
                    what: "handshake message",
                });
            }
            let Some((body, next)) = behind.split_at_checked(length) else {
                break;
            };
            rest = next;
            // Sessions are never resumed, so tickets are dropped.
            if kind == KEY_UPDATE {
                self.handle_key_update(keys, outgoing, body, next)?;
            }
        }
        Ok(bytes.len() - rest.len())
    }

    /// Switches to the peer's next key, from the next record on (RFC 8446, section 4.6.3).
    fn handle_key_update(
        &mut self,
        keys: &mut KeySchedule,
        outgoing: &mut Outgoing,
        body: &[u8],
        behind: &[u8],
    ) -> Result<(), RecordError> {
        if !behind.is_empty() {
            return Err(RecordError::Unexpected {
                what: "message after a key update in the same record",
            });
        }
        let (sequence, secrets) = keys.next_receive_secret()?;
        self.opener = Opener::new(sequence, secrets)?;
        match body {
            [0] => Ok(()),
            [1] => outgoing.answer_key_update(keys),
            _ => Err(RecordError::Malformed { what: "key update" }),
        }
    }
}

#[cfg(test)]
impl Incoming {
    /// The size of the buffer in bytes.
    pub(super) fn held(&self) -> usize {
        self.buffer.as_ref().map_or(0, |buffer| buffer.len())
    }
}
