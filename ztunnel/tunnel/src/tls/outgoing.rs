//! The sending half of a session, without I/O: plaintext in, sealed records out.
//!
//! Small writes are collected behind the header of a record, which is sealed when it is full or
//! when the caller flushes; large writes are sealed straight from the caller's bytes. The buffer is
//! refilled only after the socket has taken all of it, so bytes are never moved.

use std::io::IoSlice;

use rustls::AlertDescription;

use super::buffer::{Buffer, CONTROL_RESERVE};
use super::error::RecordError;
use super::keys::Keys;
use super::record::{Content, FULL_RECORD, HEADER, MAX_CONTENT, OVERHEAD, Sealer};

/// A KeyUpdate message (RFC 8446, section 4.6.3) that does not request one in return.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// Whether the peer waits for bytes that the application did not write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Pending bytes leave with the application's next flush.
    None,
    /// The end of the handshake is pending: a reader must send it too, because the peer waits for
    /// it.
    Handshake,
    /// The answer to a key update is pending: a reader must send it too.
    Answer,
}

/// The sending half of a session.
pub(super) struct Outgoing {
    sealer: Sealer,
    /// How many records a key may seal before it is replaced.
    limit: u64,
    buffer: Option<Buffer>,
    /// Sealed bytes wait in `buffer[start..end]`.
    start: usize,
    end: usize,
    /// Plaintext of the unfinished record, at `buffer[end + HEADER..]`.
    staged: usize,
    urgency: Urgency,
}

impl Outgoing {
    /// Starts with the first traffic key, at most `limit` records for each key, and the unsent
    /// bytes of the handshake.
    pub(super) fn new(sealer: Sealer, limit: u64, handshake: &[u8]) -> Self {
        let mut outgoing = Self {
            sealer,
            limit,
            buffer: None,
            start: 0,
            end: 0,
            staged: 0,
            urgency: Urgency::None,
        };
        if !handshake.is_empty() {
            outgoing.buffer.get_or_insert_with(Buffer::large)[..handshake.len()]
                .copy_from_slice(handshake);
            outgoing.end = handshake.len();
            outgoing.urgency = Urgency::Handshake;
        }
        outgoing
    }

    /// Takes as many bytes as fit and returns their number; 0 only if the input was empty or
    /// [`Self::is_full`].
    pub(super) fn write(
        &mut self,
        keys: &mut Keys,
        slices: &[IoSlice<'_>],
    ) -> Result<usize, RecordError> {
        let mut taken = 0;
        for slice in slices {
            let wanted = slice.len();
            let wrote = self.write_slice(keys, slice)?;
            taken += wrote;
            if wrote < wanted {
                break;
            }
        }
        Ok(taken)
    }

    fn write_slice(&mut self, keys: &mut Keys, slice: &[u8]) -> Result<usize, RecordError> {
        let mut rest = slice;
        while !rest.is_empty() {
            if self.staged == 0 {
                self.replace_worn_key(keys)?;
            }
            let buffer = self.buffer.get_or_insert_with(Buffer::large);
            let room =
                (buffer.len() - CONTROL_RESERVE).saturating_sub(self.end + self.staged + OVERHEAD);
            if room == 0 {
                break;
            }
            if self.staged == 0 && rest.len() >= MAX_CONTENT && room >= MAX_CONTENT {
                let (plain, behind) = rest.split_at(MAX_CONTENT);
                let record = &mut buffer[self.end..self.end + FULL_RECORD];
                self.sealer.seal_from(Content::Data, plain, record)?;
                self.end += FULL_RECORD;
                rest = behind;
                continue;
            }
            let count = room.min(rest.len()).min(MAX_CONTENT - self.staged);
            let (plain, behind) = rest.split_at(count);
            let place = self.end + HEADER + self.staged;
            buffer[place..place + count].copy_from_slice(plain);
            self.staged += count;
            rest = behind;
            if self.staged == MAX_CONTENT {
                self.seal_staged()?;
            }
        }
        Ok(slice.len() - rest.len())
    }

    /// Whether no byte fits until the socket has taken the pending bytes.
    pub(super) fn is_full(&self) -> bool {
        self.buffer.as_ref().is_some_and(|buffer| {
            buffer.len() - CONTROL_RESERVE <= self.end + self.staged + OVERHEAD
        })
    }

    /// Whether bytes of the protocol itself are pending.
    pub(super) const fn urgency(&self) -> Urgency {
        self.urgency
    }

    /// Whether no byte is pending.
    pub(super) const fn is_empty(&self) -> bool {
        self.start == self.end && self.staged == 0
    }

    /// The bytes for the socket; seals the unfinished record first.
    pub(super) fn pending(&mut self) -> Result<&[u8], RecordError> {
        self.seal_staged()?;
        Ok(self
            .buffer
            .as_ref()
            .map_or(&[], |buffer| &buffer[self.start..self.end]))
    }

    /// Records that the socket took that many bytes. Releases the buffer when none is left.
    pub(super) fn sent(&mut self, count: usize) {
        self.start += count;
        if self.is_empty() {
            self.buffer = None;
            self.start = 0;
            self.end = 0;
            self.urgency = Urgency::None;
        }
    }

    /// The socket takes no bytes now: keep no more memory than the pending bytes need.
    pub(super) fn park(&mut self) {
        if let Some(buffer) = &mut self.buffer
            && self.staged == 0
            && buffer.park(self.start..self.end)
        {
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Queues an alert.
    pub(super) fn alert(&mut self, alert: AlertDescription) -> Result<(), RecordError> {
        // close_notify is a warning, all other alerts are fatal (RFC 8446, section 6).
        let level = if alert == AlertDescription::CloseNotify {
            1
        } else {
            2
        };
        self.control(Content::Alert, &[level, alert.into()])
    }

    /// Answers a peer that requested an update of our key. One answer is enough for all requests
    /// that arrived before it could be sent.
    pub(super) fn answer_key_update(&mut self, keys: &mut Keys) -> Result<(), RecordError> {
        if self.urgency == Urgency::Answer {
            return Ok(());
        }
        self.update_key(keys)?;
        self.urgency = Urgency::Answer;
        Ok(())
    }

    fn replace_worn_key(&mut self, keys: &mut Keys) -> Result<(), RecordError> {
        if self.sealer.sealed() < self.limit {
            Ok(())
        } else {
            self.update_key(keys)
        }
    }

    fn update_key(&mut self, keys: &mut Keys) -> Result<(), RecordError> {
        self.control(Content::Handshake, &KEY_UPDATE)?;
        let (sequence, secrets) = keys.next_to_send()?;
        self.sealer = Sealer::new(sequence, secrets)?;
        Ok(())
    }

    fn control(&mut self, content: Content, message: &[u8]) -> Result<(), RecordError> {
        self.seal_staged()?;
        let buffer = self.buffer.get_or_insert_with(Buffer::small);
        let length = message.len() + OVERHEAD;
        let record = buffer
            .get_mut(self.end..self.end + length)
            .ok_or(RecordError::Fruitless { count: u8::MAX })?;
        self.sealer.seal_from(content, message, record)?;
        self.end += length;
        Ok(())
    }

    fn seal_staged(&mut self) -> Result<(), RecordError> {
        if let Some(buffer) = &mut self.buffer
            && self.staged > 0
        {
            let length = self.staged + OVERHEAD;
            let record = &mut buffer[self.end..self.end + length];
            self.sealer.seal_in_place(Content::Data, record)?;
            self.end += length;
            self.staged = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
impl Outgoing {
    /// Queues a record with the given content.
    pub(super) fn raw(&mut self, content: Content, bytes: &[u8]) {
        self.control(content, bytes).unwrap();
    }

    /// Sets the number of records after which the key is replaced.
    pub(super) const fn wear_out_after(&mut self, records: u64) {
        self.limit = records;
    }

    /// Uses the next key without a KeyUpdate: the test has sent it.
    pub(super) fn next_key(&mut self, keys: &mut Keys) {
        let (sequence, secrets) = keys.next_to_send().unwrap();
        self.sealer = Sealer::new(sequence, secrets).unwrap();
    }

    /// The number of bytes of memory held.
    pub(super) fn held(&self) -> usize {
        self.buffer.as_ref().map_or(0, |buffer| buffer.len())
    }
}
