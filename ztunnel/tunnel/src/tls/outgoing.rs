//! The sending direction of a session, without I/O: plaintext in, sealed records out.
//!
//! Small writes are collected in a record, which is sealed when it is full or when the caller
//! flushes; large writes are sealed directly from the caller's bytes. The buffer is refilled only
//! after the socket has accepted all of it, so bytes are never moved.

use std::io::IoSlice;

use rustls::AlertDescription;

use super::buffer::{Buffer, CONTROL_RESERVE};
use super::error::RecordError;
use super::keys::KeySchedule;
use super::record::{ContentType, FULL_RECORD_LEN, HEADER_LEN, MAX_CONTENT_LEN, OVERHEAD, Sealer};

/// A KeyUpdate message with `update_not_requested` (RFC 8446, section 4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// Whether protocol messages are pending that the peer waits for. They are sent even if the
/// application never writes again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// No: pending bytes are sent with the application's next flush.
    None,
    /// The last flight of the handshake.
    Handshake,
    /// The answer to a key update.
    KeyUpdate,
}

/// The sending direction of a session.
pub(super) struct Outgoing {
    sealer: Sealer,
    /// The number of records that a key may seal before it is updated.
    limit: u64,
    buffer: Option<Buffer>,
    /// Sealed bytes that are not sent yet: `buffer[start..end]`.
    start: usize,
    end: usize,
    /// The length of the unfinished record's plaintext, at `buffer[end + HEADER_LEN..]`.
    staged: usize,
    urgency: Urgency,
}

impl Outgoing {
    /// Starts with the first traffic key, a limit of records for each key, and the unsent bytes of
    /// the handshake.
    ///
    /// # Errors
    /// When these bytes do not fit into a buffer.
    pub(super) fn new(sealer: Sealer, limit: u64, handshake: &[u8]) -> Result<Self, RecordError> {
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
            let length = handshake.len();
            let buffer = outgoing.buffer.get_or_insert_with(Buffer::large);
            if length > buffer.len() - CONTROL_RESERVE {
                return Err(RecordError::Overflow { length });
            }
            buffer[..length].copy_from_slice(handshake);
            outgoing.end = length;
            outgoing.urgency = Urgency::Handshake;
        }
        Ok(outgoing)
    }

    /// Accepts as many bytes as fit and returns their number; 0 only if the input is empty or the
    /// buffer [is full](Self::is_full).
    pub(super) fn write(
        &mut self,
        keys: &mut KeySchedule,
        slices: &[IoSlice<'_>],
    ) -> Result<usize, RecordError> {
        let mut accepted = 0;
        for slice in slices {
            let length = slice.len();
            let wrote = self.write_slice(keys, slice)?;
            accepted += wrote;
            if wrote < length {
                break;
            }
        }
        Ok(accepted)
    }

    fn write_slice(&mut self, keys: &mut KeySchedule, slice: &[u8]) -> Result<usize, RecordError> {
        let mut rest = slice;
        while !rest.is_empty() {
            if self.staged == 0 {
                self.update_key_at_limit(keys)?;
            }
            let buffer = self.buffer.get_or_insert_with(Buffer::large);
            let space =
                (buffer.len() - CONTROL_RESERVE).saturating_sub(self.end + self.staged + OVERHEAD);
            if space == 0 {
                break;
            }
            if self.staged == 0 && rest.len() >= MAX_CONTENT_LEN && space >= MAX_CONTENT_LEN {
                let (plain, behind) = rest.split_at(MAX_CONTENT_LEN);
                let record = &mut buffer[self.end..self.end + FULL_RECORD_LEN];
                self.sealer
                    .seal_from(ContentType::ApplicationData, plain, record)?;
                self.end += FULL_RECORD_LEN;
                rest = behind;
                continue;
            }
            let count = space.min(rest.len()).min(MAX_CONTENT_LEN - self.staged);
            let (plain, behind) = rest.split_at(count);
            let position = self.end + HEADER_LEN + self.staged;
            buffer[position..position + count].copy_from_slice(plain);
            self.staged += count;
            rest = behind;
            if self.staged == MAX_CONTENT_LEN {
                self.seal_staged()?;
            }
        }
        Ok(slice.len() - rest.len())
    }

    /// Whether the buffer is full until the socket has accepted the pending bytes.
    pub(super) fn is_full(&self) -> bool {
        self.buffer.as_ref().is_some_and(|buffer| {
            buffer.len() - CONTROL_RESERVE <= self.end + self.staged + OVERHEAD
        })
    }

    /// Whether protocol messages are pending that the peer waits for.
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

    /// Records that the socket accepted that many bytes. Releases the buffer when none is left.
    pub(super) fn sent(&mut self, count: usize) {
        self.start += count;
        if self.is_empty() {
            self.buffer = None;
            self.start = 0;
            self.end = 0;
            self.urgency = Urgency::None;
        }
    }

    /// Called when the socket is full: keeps no more memory than the pending bytes need.
    pub(super) fn shrink(&mut self) {
        if let Some(buffer) = &mut self.buffer
            && self.staged == 0
            && buffer.shrink(self.start..self.end)
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
        self.control(ContentType::Alert, &[level, alert.into()])
    }

    /// Queues the answer to a peer that requested an update of our key. One answer serves all
    /// requests that arrive before it is sent (RFC 8446, section 4.6.3).
    pub(super) fn answer_key_update(&mut self, keys: &mut KeySchedule) -> Result<(), RecordError> {
        if self.urgency == Urgency::KeyUpdate {
            return Ok(());
        }
        self.update_key(keys)?;
        self.urgency = Urgency::KeyUpdate;
        Ok(())
    }

    fn update_key_at_limit(&mut self, keys: &mut KeySchedule) -> Result<(), RecordError> {
        if self.sealer.sealed_records() < self.limit {
            Ok(())
        } else {
            self.update_key(keys)
        }
    }

    fn update_key(&mut self, keys: &mut KeySchedule) -> Result<(), RecordError> {
        self.control(ContentType::Handshake, &KEY_UPDATE)?;
        let (sequence, secrets) = keys.next_send_secret()?;
        self.sealer = Sealer::new(sequence, secrets)?;
        Ok(())
    }

    fn control(&mut self, content: ContentType, message: &[u8]) -> Result<(), RecordError> {
        self.seal_staged()?;
        let buffer = self.buffer.get_or_insert_with(Buffer::small);
        let length = message.len() + OVERHEAD;
        let record = buffer
            .get_mut(self.end..self.end + length)
            .ok_or(RecordError::NoData { count: u8::MAX })?;
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
            self.sealer
                .seal_in_place(ContentType::ApplicationData, record)?;
            self.end += length;
            self.staged = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
impl Outgoing {
    /// Queues a record with the given content.
    pub(super) fn raw(&mut self, content: ContentType, bytes: &[u8]) {
        self.control(content, bytes).unwrap();
    }

    /// Sets the number of records after which the key is updated.
    pub(super) const fn set_key_limit(&mut self, records: u64) {
        self.limit = records;
    }

    /// Changes to the next key without a KeyUpdate message: the test has queued one.
    pub(super) fn next_key(&mut self, keys: &mut KeySchedule) {
        let (sequence, secrets) = keys.next_send_secret().unwrap();
        self.sealer = Sealer::new(sequence, secrets).unwrap();
    }

    /// The size of the buffer in bytes.
    pub(super) fn held(&self) -> usize {
        self.buffer.as_ref().map_or(0, |buffer| buffer.len())
    }
}
