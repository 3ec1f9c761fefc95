//! What an application asks, and answers of our own to it.
//!
//! Only a plain query is understood: one question of the class IN, nothing but EDNS beside it.
//! Everything else is for the application's resolver.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};

use super::wire::{self, Header, Reply, Terms};
use mesh::names::{Answer, Family, TTL};

/// Types of records (RFC 1035, section 3.2.2; RFC 3596).
const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;

/// What a client without EDNS takes (RFC 1035, section 4.2.1).
const SMALLEST_PAYLOAD: u16 = 512;

/// A plain query.
#[derive(Debug)]
pub struct Query {
    header: Header,
    message: Message,
    /// The question as it was sent.
    raw: Vec<u8>,
    /// The name in lower case, without the dot at its end; empty if it can be no host's.
    name: String,
}

/// How an answer depends on more than the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flavour {
    edns: bool,
    dnssec: bool,
    recursion: bool,
    unchecked: bool,
}

impl Query {
    /// Decodes a message if it is a plain query.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        // Looked at first because what is decoded is only bounded by these numbers.
        let header = Header::of(bytes)?;
        if !matches!(header.counts, [1, 0, 0, 0 | 1]) {
            return None;
        }
        let raw = wire::question(bytes)?;
        let message = Message::from_vec(bytes).ok()?;
        let [question] = &message.queries[..] else {
            return None;
        };
        let plain = message.metadata.message_type == MessageType::Query
            && message.metadata.op_code == OpCode::Query
            && !message.metadata.truncation
            && question.query_class() == DNSClass::IN
            && message.additionals.is_empty()
            && message.signature.is_none()
            && message.edns.as_ref().is_none_or(|edns| edns.version() == 0);
        let name = host(question.name());
        plain.then(|| Self {
            header,
            raw: raw.to_vec(),
            name,
            message,
        })
    }

    /// The name that is asked for, in lower case, without a dot at its end; empty if it can be no
    /// host's.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The id that the client gave it.
    pub(super) const fn id(&self) -> u16 {
        self.header.id
    }

    /// The question as it was sent.
    pub(super) fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Which addresses are asked for, if any.
    pub(super) fn family(&self) -> Option<Family> {
        match self.message.queries.first()?.query_type() {
            RecordType::A => Some(Family::V4),
            RecordType::AAAA => Some(Family::V6),
            _ => None,
        }
    }

    /// The most bytes that the client takes in a datagram.
    pub(super) fn payload(&self) -> usize {
        let edns = self.message.edns.as_ref();
        let payload = edns.map_or(SMALLEST_PAYLOAD, Edns::max_payload);
        payload.max(SMALLEST_PAYLOAD).into()
    }

    /// What else the answer depends on; none where the query has options that may make it
    /// somebody's own.
    pub(super) fn flavour(&self) -> Option<Flavour> {
        let metadata = &self.message.metadata;
        let edns = self.message.edns.as_ref();
        let options = edns.is_some_and(|edns| !edns.options().as_ref().is_empty());
        (!options).then(|| Flavour {
            edns: edns.is_some(),
            dnssec: edns.is_some_and(|edns| edns.flags().dnssec_ok),
            recursion: metadata.recursion_desired,
            unchecked: metadata.checking_disabled,
        })
    }

    /// The response to it, of at most `most` bytes: what does not fit is left out, and it says so.
    pub(super) fn respond(&self, answer: &Answer, most: usize) -> Vec<u8> {
        let mut reply = self.reply(0, true, most);
        let Answer::Records {
            addresses,
            canonical,
        } = answer
        else {
            return reply.finish();
        };
        let owner = match canonical {
            None => Some(Reply::ASKED),
            Some(canonical) => self.alias(&mut reply, canonical),
        };
        let Some(owner) = owner else {
            return reply.finish();
        };
        for address in addresses {
            let added = match address {
                IpAddr::V4(address) => reply.add(owner, A, TTL, &address.octets()),
                IpAddr::V6(address) => reply.add(owner, AAAA, TTL, &address.octets()),
            };
            if added.is_none() {
                break;
            }
        }
        reply.finish()
    }

    /// The response that says that it cannot be answered.
    pub(super) fn fail(&self) -> Vec<u8> {
        let code = ResponseCode::ServFail.low();
        self.reply(code, false, self.payload()).finish()
    }

    fn reply(&self, code: u8, authoritative: bool, most: usize) -> Reply {
        let edns = self.message.edns.as_ref();
        let payload = |edns: &Edns| edns.max_payload().max(SMALLEST_PAYLOAD);
        let terms = Terms {
            code,
            authoritative,
            edns: edns.map(|edns| (payload(edns), edns.flags().dnssec_ok)),
            most,
        };
        Reply::to(&self.header, &self.raw, terms)
    }

    /// Says that the name that was asked is an alias of what it begins with.
    fn alias(&self, reply: &mut Reply, canonical: &str) -> Option<u16> {
        // Each label has a length in front, where the text has a dot behind all but the last.
        let mut name = self.raw.get(..=canonical.len())?.to_vec();
        name.push(0);
        reply.add(Reply::ASKED, CNAME, TTL, &name)
    }
}

/// A name as text, in lower case. Empty where it has bytes that a host name has not.
fn host(name: &Name) -> String {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_*".contains(byte);
        if !label.iter().all(fits) {
            return String::new();
        }
        text.extend(
            label
                .iter()
                .map(|byte| char::from(byte.to_ascii_lowercase())),
        );
    }
    text
}

#[cfg(test)]
mod tests;
