//! DNS messages as bytes, for messages that must be forwarded as they were sent (RFC 1035, section
//! 4).
//!
//! A forwarded message is never decoded and encoded again: its id is replaced in place, and the
//! TTLs of cached answers are decremented in place. The input is untrusted: each function returns
//! `None` for malformed messages.

use std::ops::Range;

/// The length of a header.
const HEADER: usize = 12;
const HEADER_16: u16 = 12;
/// The longest name, with its length bytes.
const LONGEST_NAME: usize = 255;
/// The type of the EDNS pseudo-record, whose TTL field has another meaning (RFC 6891).
const OPT: u16 = 41;
/// The type of the record with the TTL of negative answers (RFC 2308).
const SOA: u16 = 6;

/// The fixed part of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: u16,
    flags: u16,
    /// The numbers of questions, answers, authorities and additional records.
    pub(super) counts: [u16; 4],
}

impl Header {
    pub(super) fn of(message: &[u8]) -> Option<Self> {
        let field = |at| number(message, at);
        Some(Self {
            id: field(0)?,
            flags: field(2)?,
            counts: [field(4)?, field(6)?, field(8)?, field(10)?],
        })
    }

    pub(super) const fn is_response(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    pub(super) const fn is_truncated(&self) -> bool {
        self.flags & 0x0200 != 0
    }

    /// The response code, without the extension by EDNS.
    pub(super) const fn code(&self) -> u16 {
        self.flags & 0x000f
    }
}

/// Replaces the id of a message.
pub(super) fn set_id(message: &mut [u8], id: u16) {
    if let Some(field) = message.first_chunk_mut() {
        *field = id.to_be_bytes();
    }
}

/// The bytes of the only question. `None` if there is not exactly one, or if its name is
/// compressed, for which a question has no reason.
pub(super) fn question(message: &[u8]) -> Option<&[u8]> {
    let header = Header::of(message)?;
    if header.counts[0] != 1 {
        return None;
    }
    let mut at = HEADER;
    loop {
        match usize::from(*message.get(at)?) {
            0 => break,
            length @ 1..=63 => at += 1 + length,
            _ => return None,
        }
        if at - HEADER >= LONGEST_NAME {
            return None;
        }
    }
    message.get(HEADER..at + 5)
}

/// The record type of a question.
pub(super) fn kind(question: &[u8]) -> Option<u16> {
    number(question, question.len().checked_sub(4)?)
}

/// Whether two questions are the same, ignoring letter case.
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

/// The question in lower case.
pub(super) fn in_small_letters(question: &[u8]) -> Vec<u8> {
    let mut small = question.to_vec();
    // Type and class are numbers: they must not be changed.
    let name = small.len().saturating_sub(4);
    small[..name].make_ascii_lowercase();
    small
}

/// Replaces the question by an equal one in another letter case.
pub(super) fn set_question(message: &mut [u8], question: &[u8]) {
    if let Some(field) = message.get_mut(HEADER..HEADER + question.len()) {
        field.copy_from_slice(question);
    }
}

/// The refusal of a query with arbitrary bytes: a response with this code, the query's id and, if
/// it has one, its question.
pub(super) fn refusal(query: &[u8], code: u8) -> Option<Vec<u8>> {
    let header = Header::of(query)?;
    let question = question(query);
    // The opcode and "recursion desired" are kept; "recursion available" is set.
    let flags = 0x8080 | (header.flags & 0x7910) | u16::from(code & 0x0f);
    let mut message = Vec::with_capacity(HEADER + question.map_or(0, <[u8]>::len));
    message.extend(header.id.to_be_bytes());
    message.extend(flags.to_be_bytes());
    message.extend(u16::from(question.is_some()).to_be_bytes());
    message.extend([0; 6]);
    message.extend(question.unwrap_or_default());
    Some(message)
}

/// The properties of a response besides the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    /// The response code.
    pub(super) code: u8,
    /// Whether the answer is authoritative.
    pub(super) authoritative: bool,
    /// The payload size and whether signatures are requested, if the query has EDNS.
    pub(super) edns: Option<(u16, bool)>,
    /// The maximum size in bytes.
    pub(super) most: usize,
}

/// A response of the proxy's own, with the question as it was sent.
#[derive(Debug)]
pub(super) struct Reply {
    message: Vec<u8>,
    flags: u16,
    answers: u16,
    terms: Terms,
}

impl Reply {
    /// The question's name as a pointer for records.
    pub(super) const ASKED: u16 = 0xc000 | HEADER_16;
    /// The length of an EDNS pseudo-record without options.
    const EDNS: usize = 11;

    pub(super) fn to(query: &Header, question: &[u8], terms: Terms) -> Self {
        // "Recursion desired" and "checking disabled" are kept; "recursion available" is set.
        let authoritative = if terms.authoritative { 0x0400 } else { 0 };
        let flags = 0x8080 | (query.flags & 0x0110) | authoritative | u16::from(terms.code & 0x0f);
        let mut message = Vec::with_capacity(512);
        message.extend(query.id.to_be_bytes());
        message.resize(HEADER, 0);
        message.extend(question);
        Self {
            message,
            flags,
            answers: 0,
            terms,
        }
    }

    /// Adds a record whose owner is the pointer `owner`; returns a pointer to the record's data. If
    /// the record does not fit, the response is marked as truncated.
    pub(super) fn add(&mut self, owner: u16, kind: u16, lifetime: u32, data: &[u8]) -> Option<u16> {
        let edns = self.terms.edns.map_or(0, |_| Self::EDNS);
        let start = self.message.len() + 12;
        let length = u16::try_from(data.len()).ok()?;
        if start + data.len() + edns > self.terms.most.min(usize::from(u16::MAX)) {
            self.flags |= 0x0200;
            return None;
        }
        self.message.extend(owner.to_be_bytes());
        self.message.extend(kind.to_be_bytes());
        self.message.extend([0, 1]);
        self.message.extend(lifetime.to_be_bytes());
        self.message.extend(length.to_be_bytes());
        self.message.extend(data);
        self.answers += 1;
        // A pointer has 14 bits.
        u16::try_from(start).ok().map(|start| 0xc000 | start)
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        if let Some((payload, dnssec)) = self.terms.edns {
            self.message.extend([0, 0, 41]);
            self.message.extend(payload.to_be_bytes());
            let flags = if dnssec { 0x80 } else { 0 };
            self.message.extend([0, 0, flags, 0, 0, 0]);
        }
        let counts = [1, self.answers, 0, u16::from(self.terms.edns.is_some())];
        let fields = [self.flags].into_iter().chain(counts);
        let fields: Vec<u8> = fields.flat_map(u16::to_be_bytes).collect();
        self.message.splice(2..HEADER, fields);
        self.message
    }
}

/// The positions of the TTLs in a message, and how long the whole message may be cached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lifetimes {
    /// Seconds; 0 if it must not be cached.
    pub(super) least: u32,
    places: Vec<usize>,
}

impl Lifetimes {
    /// The TTLs of a response with one question. `None` if the message is malformed. A negative
    /// answer lasts for the TTL of the zone's SOA record (RFC 2308, section 5), and must not be
    /// cached without one.
    pub(super) fn of(message: &[u8]) -> Option<Self> {
        let header = Header::of(message)?;
        let mut at = HEADER + question(message)?.len();
        let mut found = Self {
            least: u32::MAX,
            places: Vec::new(),
        };
        let mut denial = None;
        for (section, count) in header.counts.iter().enumerate().skip(1) {
            for _ in 0..*count {
                let record = Record::at(message, at)?;
                at = record.data.end;
                if record.kind == OPT {
                    continue;
                }
                found.places.push(record.lifetime_at);
                found.least = found.least.min(record.lifetime);
                if section == 2 && record.kind == SOA {
                    denial = wide(message, record.data.end.checked_sub(4)?);
                }
            }
        }
        if at != message.len() {
            return None;
        }
        if header.counts[1] == 0 || header.code() != 0 {
            found.least = found.least.min(denial.unwrap_or(0));
        }
        Some(found)
    }

    /// Subtracts the elapsed seconds from every TTL.
    pub(super) fn count_down(&self, message: &mut [u8], seconds: u32) {
        for &at in &self.places {
            if let Some(left) = wide(message, at)
                && let Some(field) = message.get_mut(at..at + 4)
            {
                field.copy_from_slice(&left.saturating_sub(seconds).to_be_bytes());
            }
        }
    }
}

struct Record {
    kind: u16,
    lifetime_at: usize,
    lifetime: u32,
    data: Range<usize>,
}

impl Record {
    fn at(message: &[u8], start: usize) -> Option<Self> {
        let name = name_end(message, start)?;
        let data = name + 10;
        let record = Self {
            kind: number(message, name)?,
            lifetime_at: name + 4,
            lifetime: wide(message, name + 4)?,
            data: data..data + usize::from(number(message, name + 8)?),
        };
        (record.data.end <= message.len()).then_some(record)
    }
}

/// The end of a name that may be compressed. The target of a pointer is not checked.
fn name_end(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    while at - start < LONGEST_NAME {
        match usize::from(*message.get(at)?) {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + length,
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
    None
}

fn number(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn wide(message: &[u8], at: usize) -> Option<u32> {
    let bytes = message.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests;
