//! DNS queries of applications, and the proxy's own responses.
//!
//! Only plain queries are understood: one question of the class IN, and at most EDNS besides it.
//! Other queries are forwarded to the application's resolver.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};

use super::wire::{self, Header, Reply, Terms};
use mesh::names::{Answer, Family, TTL};

/// Types of records (RFC 1035, section 3.2.2; RFC 3596).
const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;

/// The payload limit of a client without EDNS (RFC 1035, section 4.2.1).
const SMALLEST_PAYLOAD: u16 = 512;

/// A plain query.
#[derive(Debug)]
pub struct Query {
    header: Header,
    message: Message,
    /// The question as it was sent.
    raw: Vec<u8>,
    /// The name in lower case, without the trailing dot; empty if it cannot be a host name.
    name: String,
}

/// The properties of a query, besides the question, that its answer depends on.
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
        // Checked first, because only these numbers bound the work of decoding.
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

    /// The queried name in lower case, without a trailing dot; empty if it cannot be a host name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The client's query id.
    pub(super) const fn id(&self) -> u16 {
        self.header.id
    }

    /// The question as it was sent.
    pub(super) fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The queried address family, if the query is for addresses.
    pub(super) fn family(&self) -> Option<Family> {
        match self.message.queries.first()?.query_type() {
            RecordType::A => Some(Family::V4),
            RecordType::AAAA => Some(Family::V6),
            _ => None,
        }
    }

    /// The maximum size of a datagram that the client accepts.
    pub(super) fn payload(&self) -> usize {
        let edns = self.message.edns.as_ref();
        let payload = edns.map_or(SMALLEST_PAYLOAD, Edns::max_payload);
        payload.max(SMALLEST_PAYLOAD).into()
    }

    /// The properties that the answer depends on. `None` if the query has EDNS options, because the
    /// answer may then be specific to the client.
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

    /// The response, of at most `most` bytes: records that do not fit are left out, and the
    /// response is marked as truncated.
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

    /// The response that reports a server failure.
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

    /// Adds a CNAME record: the queried name is an alias of its own prefix `canonical`.
    fn alias(&self, reply: &mut Reply, canonical: &str) -> Option<u16> {
        // On the wire each label is preceded by its length; in text all labels but the last are
        // followed by a dot.
        let mut name = self.raw.get(..=canonical.len())?.to_vec();
        name.push(0);
        reply.add(Reply::ASKED, CNAME, TTL, &name)
    }
}

/// A name as text, in lower case. Empty if it has bytes that are not allowed in host names.
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
