//! The receiving half of a session, without I/O: sealed records in, plaintext out.
//!
//! Records are opened straight into the reader's memory when they fit, else in place and then
//! copied out in parts. Handshake messages that follow the handshake (key updates, session tickets)
//! and alerts are handled here.

use std::ops::Range;

use rustls::AlertDescription;
use tokio::io::ReadBuf;

use super::buffer::{Buffer, LARGE};
use super::error::{RecordError, Role};
use super::keys::Keys;
use super::outgoing::Outgoing;
use super::record::{Content, HEADER, Opener, record_length};

/// The limit of records in a row without application data (empty records, tickets, key updates).
const MAX_FRUITLESS: u8 = 32;
/// The largest handshake message after the handshake: a session ticket has about 300 bytes.
const MAX_MESSAGE: usize = 1 << 16;
/// Free space behind the received bytes that is enough to read without moving them.
const WORTHWHILE: usize = LARGE / 4;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// Whether the peer may still send.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The peer may send.
    Open,
    /// The peer has sent close_notify.
    Closed,
}

/// Why [`Incoming::take`] stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The reader's memory is full.
    Full,
    /// No complete record is left.
    Hungry,
    /// The peer has closed its side.
    Closed,
}

/// The receiving half of a session.
pub(super) struct Incoming {
    opener: Opener,
    buffer: Option<Buffer>,
    /// Received sealed bytes: `buffer[start..end]`.
    start: usize,
    end: usize,
    /// Opened bytes that did not fit the reader's memory, in front of `start`.
    plain: Range<usize>,
    /// A handshake message that continues in the next record.
    message: Vec<u8>,
    fruitless: u8,
    /// Whether a record was opened before: the refusal of a client certificate is in the first one.
    heard: bool,
    side: Side,
}

impl Incoming {
    /// Starts with the first traffic key and the bytes that were received behind the handshake.
    pub(super) fn new(opener: Opener, arrived: &[u8]) -> Result<Self, RecordError> {
        let mut incoming = Self {
            opener,
            buffer: None,
            start: 0,
            end: 0,
            plain: 0..0,
            message: Vec::new(),
            fruitless: 0,
            heard: false,
            side: Side::Open,
        };
        if !arrived.is_empty() {
            incoming
                .buffer
                .get_or_insert_with(Buffer::large)
                .get_mut(..arrived.len())
                .ok_or(RecordError::Overflow {
                    length: arrived.len(),
                })?
                .copy_from_slice(arrived);
            incoming.end = arrived.len();
        }
        Ok(incoming)
    }

    /// Fills the reader's memory from the received records.
    pub(super) fn take(
        &mut self,
        keys: &mut Keys,
        outgoing: &mut Outgoing,
        out: &mut ReadBuf<'_>,
    ) -> Result<Stop, RecordError> {
        loop {
            self.copy_opened(out);
            if out.remaining() == 0 {
                return Ok(Stop::Full);
            }
            if self.side == Side::Closed {
                self.buffer = None;
                return Ok(Stop::Closed);
            }
            let Some(buffer) = &mut self.buffer else {
                return Ok(Stop::Hungry);
            };
            let arrived = &mut buffer[self.start..self.end];
            let length = match record_length(arrived)? {
                Some(length) if length <= arrived.len() => length,
                _ => {
                    self.release_if_empty();
                    return Ok(Stop::Hungry);
                }
            };
            let record = &mut arrived[..length];
            let inner = Opener::inner_length(length);
            let at = self.start + HEADER;
            self.start += length;
            if out.remaining() >= inner {
                let place = out.initialize_unfilled_to(inner);
                let (content, count) = self.opener.open_into(record, place)?;
                if content == Content::Data && self.message.is_empty() {
                    out.advance(count);
                    self.count_record(count)?;
                } else {
                    // Rare enough to afford the copy.
                    let body = place[..count].to_vec();
                    self.control(keys, outgoing, content, &body)?;
                }
            } else {
                let (content, count) = self.opener.open_in_place(record)?;
                if content == Content::Data && self.message.is_empty() {
                    self.plain = at..at + count;
                    self.count_record(count)?;
                } else {
                    let body = record[HEADER..HEADER + count].to_vec();
                    self.control(keys, outgoing, content, &body)?;
                }
            }
        }
    }

    /// Space for the next read of the socket.
    pub(super) fn space(&mut self) -> &mut [u8] {
        let buffer = self.buffer.get_or_insert_with(Buffer::large);
        if buffer.len() < LARGE {
            let mut large = Buffer::large();
            let kept = self.end - self.start;
            large[..kept].copy_from_slice(&buffer[self.start..self.end]);
            *buffer = large;
            self.start = 0;
            self.end = kept;
        } else if buffer.len() - self.end < WORTHWHILE {
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

    /// The socket has no bytes now: keep no more memory than the waiting bytes need.
    pub(super) fn park(&mut self) {
        self.release_if_empty();
        if let Some(buffer) = &mut self.buffer
            && self.plain.is_empty()
            && buffer.park(self.start..self.end)
        {
            self.end -= self.start;
            self.start = 0;
        }
    }

    fn release_if_empty(&mut self) {
        if self.start == self.end && self.plain.is_empty() {
            self.buffer = None;
            self.start = 0;
            self.end = 0;
        }
    }

    fn copy_opened(&mut self, out: &mut ReadBuf<'_>) {
        if let Some(buffer) = &self.buffer
            && !self.plain.is_empty()
        {
            let count = self.plain.len().min(out.remaining());
            out.put_slice(&buffer[self.plain.start..self.plain.start + count]);
            self.plain.start += count;
            self.release_if_empty();
        }
    }

    const fn count_record(&mut self, content: usize) -> Result<(), RecordError> {
        self.heard = true;
        if content > 0 {
            self.fruitless = 0;
            return Ok(());
        }
        self.fruitless += 1;
        if self.fruitless > MAX_FRUITLESS {
            return Err(RecordError::Fruitless {
                count: self.fruitless,
            });
        }
        Ok(())
    }

    fn control(
        &mut self,
        keys: &mut Keys,
        outgoing: &mut Outgoing,
        content: Content,
        body: &[u8],
    ) -> Result<(), RecordError> {
        let first = !self.heard;
        self.count_record(0)?;
        match content {
            // A message in parts must not be mixed with other records (RFC 8446, section 5.1).
            Content::Data => Err(RecordError::Unexpected {
                what: "record inside a message",
            }),
            Content::Alert if !self.message.is_empty() => Err(RecordError::Unexpected {
                what: "alert inside a message",
            }),
            Content::Alert => self.alert(keys.role(), first, body),
            Content::Handshake if body.is_empty() => Err(RecordError::Unexpected {
                what: "empty handshake record",
            }),
            Content::Handshake => {
                self.message.extend_from_slice(body);
                let mut messages = std::mem::take(&mut self.message);
                let used = self.messages(keys, outgoing, &messages)?;
                messages.drain(..used);
                if messages.is_empty() {
                    return Ok(());
                }
                self.message = messages;
                Ok(())
            }
        }
    }

    fn alert(&mut self, role: Role, first: bool, body: &[u8]) -> Result<(), RecordError> {
        let &[_level, code] = body else {
            return Err(RecordError::Malformed { what: "alert" });
        };
        match AlertDescription::from(code) {
            AlertDescription::CloseNotify => {
                self.side = Side::Closed;
                Ok(())
            }
            // Not an error (RFC 8446, section 6.1); close_notify follows.
            AlertDescription::UserCanceled => Ok(()),
            alert if first && role == Role::Client => Err(RecordError::Rejected { alert }),
            alert => Err(RecordError::Alert { alert }),
        }
    }

    /// Handles the complete messages and returns how many bytes they were.
    fn messages(
        &mut self,
        keys: &mut Keys,
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
            if length > MAX_MESSAGE || (kind == KEY_UPDATE && length != 1) {
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
                self.key_update(keys, outgoing, body, next)?;
            }
        }
        Ok(bytes.len() - rest.len())
    }

    /// Switches to the peer's next key, from the next record on (RFC 8446, section 4.6.3).
    fn key_update(
        &mut self,
        keys: &mut Keys,
        outgoing: &mut Outgoing,
        body: &[u8],
        behind: &[u8],
    ) -> Result<(), RecordError> {
        if !behind.is_empty() {
            return Err(RecordError::Unexpected {
                what: "message behind a key update",
            });
        }
        let (sequence, secrets) = keys.next_to_receive()?;
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
    /// The number of bytes of memory held.
    pub(super) fn held(&self) -> usize {
        self.buffer.as_ref().map_or(0, |buffer| buffer.len())
    }
}
