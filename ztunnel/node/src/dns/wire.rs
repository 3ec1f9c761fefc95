//! DNS messages as bytes, for messages that must be forwarded as they were sent (RFC 1035, section
//! 4).
//!
//! A forwarded message is never decoded and encoded again: its id is replaced in place, and the
//! TTLs of cached answers are decremented in place. The input is untrusted: each function returns
//! `None` for malformed messages.

use std::ops::Range;

use hickory_proto::op::{Header, HeaderCounts, Metadata, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder, BinEncodable as _};

/// The length of a header.
const HEADER_LENGTH: usize = 12;
/// The maximum length of a name, with the length bytes of its labels.
const MAX_NAME_LENGTH: usize = 255;
/// The type of the EDNS pseudo-record, whose TTL field has another meaning (RFC 6891).
const OPT: u16 = 41;
/// The type of the record with the TTL of negative answers (RFC 2308).
const SOA: u16 = 6;
/// The index of the authority section among the sections of records.
const AUTHORITIES: usize = 1;

/// The header of a message. Its response code lacks the extension by EDNS.
pub(super) fn header(message: &[u8]) -> Option<Header> {
    Header::read(&mut BinDecoder::new(message)).ok()
}

/// Replaces the id of a message.
pub(super) fn set_id(message: &mut [u8], id: u16) {
    if let Some(field) = message.first_chunk_mut() {
        *field = id.to_be_bytes();
    }
}

/// The bytes of the only question: name, type and class. `None` if there is not exactly one, or if
/// its name is compressed, for which a question has no reason.
pub(super) fn question(message: &[u8]) -> Option<&[u8]> {
    if header(message)?.counts.queries != 1 {
        return None;
    }
    let mut at = HEADER_LENGTH;
    loop {
        match usize::from(*message.get(at)?) {
            0 => break,
            length @ 1..=63 => at += 1 + length,
            _ => return None,
        }
        if at - HEADER_LENGTH >= MAX_NAME_LENGTH {
            return None;
        }
    }
    message.get(HEADER_LENGTH..at + 5)
}

/// The record type of a question.
pub(super) fn record_type(question: &[u8]) -> Option<u16> {
    read_u16(question, question.len().checked_sub(4)?)
}

/// Whether two questions are the same, ignoring the letter case of their names.
pub(super) fn same_question(one: &[u8], other: &[u8]) -> bool {
    let Some((name, rest)) = one.len().checked_sub(4).map(|at| one.split_at(at)) else {
        return false;
    };
    let (Some(other_name), Some(other_rest)) = (other.get(..name.len()), other.get(name.len()..))
    else {
        return false;
    };
    // The length bytes of labels are below the letters, so a comparison of all bytes is correct.
    name.eq_ignore_ascii_case(other_name) && rest == other_rest
}

/// The question with its name in lower case.
pub(super) fn lowercase_question(question: &[u8]) -> Vec<u8> {
    let mut lowercase = question.to_vec();
    // Type and class are numbers: they must not be changed.
    let name = lowercase.len().saturating_sub(4);
    lowercase[..name].make_ascii_lowercase();
    lowercase
}

/// Replaces the question by an equal one in another letter case.
pub(super) fn set_question(message: &mut [u8], question: &[u8]) {
    if let Some(field) = message.get_mut(HEADER_LENGTH..HEADER_LENGTH + question.len()) {
        field.copy_from_slice(question);
    }
}

/// The response to arbitrary bytes that reports a server failure, with the query's id, opcode and,
/// if it has exactly one, its question. `None` if the bytes are shorter than a header.
pub(super) fn server_failure(query: &[u8]) -> Option<Vec<u8>> {
    let mut metadata = Metadata::response_from_request(&header(query)?.metadata);
    metadata.recursion_available = true;
    metadata.response_code = ResponseCode::ServFail;
    let question = question(query);
    let counts = HeaderCounts {
        queries: u16::from(question.is_some()),
        ..HeaderCounts::default()
    };
    let mut message = Header { metadata, counts }.to_bytes().ok()?;
    message.extend(question.unwrap_or_default());
    Some(message)
}

/// The TTLs of a message's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ttls {
    /// How long the whole message may be cached, in seconds; 0 if it must not be cached.
    pub(super) min: u32,
    /// The positions of the TTL fields.
    offsets: Vec<usize>,
}

impl Ttls {
    /// The TTLs of a response with one question. `None` if the message is malformed. A negative
    /// answer lasts for the TTL of the zone's SOA record (RFC 2308, section 5), and must not be
    /// cached without one.
    ///
    /// Names are skipped and not decoded: pointers in a hostile message can make decoding take
    /// quadratic time.
    pub(super) fn of(message: &[u8]) -> Option<Self> {
        let header = header(message)?;
        let counts = header.counts;
        let mut at = HEADER_LENGTH + question(message)?.len();
        let mut found = Self {
            min: u32::MAX,
            offsets: Vec::new(),
        };
        let mut negative_ttl = None;
        for (section, count) in [counts.answers, counts.authorities, counts.additionals]
            .into_iter()
            .enumerate()
        {
            for _ in 0..count {
                let record = Record::at(message, at)?;
                at = record.data.end;
                if record.record_type == OPT {
                    continue;
                }
                found.offsets.push(record.ttl_offset);
                found.min = found.min.min(record.ttl);
                if section == AUTHORITIES && record.record_type == SOA {
                    // The last field of the data.
                    negative_ttl = read_u32(message, record.data.end.checked_sub(4)?);
                }
            }
        }
        if at != message.len() {
            return None;
        }
        if counts.answers == 0 || header.response_code != ResponseCode::NoError {
            found.min = found.min.min(negative_ttl.unwrap_or(0));
        }
        Some(found)
    }

    /// Subtracts the elapsed seconds from every TTL.
    pub(super) fn subtract(&self, message: &mut [u8], seconds: u32) {
        for &at in &self.offsets {
            if let Some(ttl) = read_u32(message, at)
                && let Some(field) = message.get_mut(at..at + 4)
            {
                field.copy_from_slice(&ttl.saturating_sub(seconds).to_be_bytes());
            }
        }
    }
}

/// The parts of a record that do not depend on its type.
struct Record {
    record_type: u16,
    ttl_offset: usize,
    ttl: u32,
    data: Range<usize>,
}

impl Record {
    fn at(message: &[u8], start: usize) -> Option<Self> {
        let name_end = name_end(message, start)?;
        let data = name_end + 10;
        let record = Self {
            record_type: read_u16(message, name_end)?,
            ttl_offset: name_end + 4,
            ttl: read_u32(message, name_end + 4)?,
            data: data..data + usize::from(read_u16(message, name_end + 8)?),
        };
        (record.data.end <= message.len()).then_some(record)
    }
}

/// The end of a name that may be compressed. The target of a pointer is not checked.
fn name_end(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    while at - start < MAX_NAME_LENGTH {
        match usize::from(*message.get(at)?) {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + length,
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
    None
}

fn read_u16(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn read_u32(message: &[u8], at: usize) -> Option<u32> {
    let bytes = message.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests;
