//! What an application asks, and answers of our own to it.
//!
//! Only a plain query is understood: one question of the class IN, nothing but EDNS beside it.
//! Everything else is for the application's resolver.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder};

use super::answer::{Answer, Family, TTL};
use super::wire::{self, Header};

/// What a client without EDNS takes (RFC 1035, section 4.2.1).
const SMALLEST_PAYLOAD: u16 = 512;

/// A plain query.
#[derive(Debug)]
pub(super) struct Query {
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
    /// Takes a message apart if it is a plain query.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
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

    /// The response to it, of at most `most` bytes. None where it cannot be written so that the
    /// question in it is the one that was asked, byte by byte.
    pub(super) fn respond(&self, answer: &Answer, most: usize) -> Option<Vec<u8>> {
        let records = self.records(answer)?;
        let mut response = self.response(ResponseCode::NoError);
        response.metadata.authoritative = true;
        response.answers = records;
        let full = encode(&response)?;
        if full.len() > most {
            response.metadata.truncation = true;
            // Each address takes as many bytes as any other.
            let kept = response.answers.len();
            let spare = full.len() - most;
            let one = if self.family() == Some(Family::V4) {
                16
            } else {
                28
            };
            response
                .answers
                .truncate(kept.saturating_sub(spare.div_ceil(one)));
        }
        let bytes = encode(&response)?;
        (bytes.len() <= most && wire::question(&bytes) == Some(self.raw())).then_some(bytes)
    }

    /// The response that says that it cannot be answered.
    pub(super) fn fail(&self) -> Option<Vec<u8>> {
        encode(&self.response(ResponseCode::ServFail))
    }

    fn response(&self, code: ResponseCode) -> Message {
        let metadata = &self.message.metadata;
        let mut response = Message::response(metadata.id, OpCode::Query);
        response.metadata.recursion_desired = metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.metadata.checking_disabled = metadata.checking_disabled;
        response.metadata.response_code = code;
        response.queries.clone_from(&self.message.queries);
        if let Some(asked) = &self.message.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().max(SMALLEST_PAYLOAD));
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            response.edns = Some(edns);
        }
        response
    }

    fn records(&self, answer: &Answer) -> Option<Vec<Record>> {
        let Answer::Records {
            addresses,
            canonical,
        } = answer
        else {
            return Some(Vec::new());
        };
        let asked = self.message.queries.first()?.name().clone();
        let mut records = Vec::with_capacity(addresses.len() + 1);
        let owner = match canonical {
            None => asked,
            Some(canonical) => {
                let mut canonical = Name::from_ascii(canonical).ok()?;
                canonical.set_fqdn(true);
                let alias = RData::CNAME(CNAME(canonical.clone()));
                records.push(Record::from_rdata(asked, TTL, alias));
                canonical
            }
        };
        let of = |address: &IpAddr| match address {
            IpAddr::V4(address) => RData::A(A(*address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
        };
        let records_of = addresses.iter().map(of);
        records.extend(records_of.map(|data| Record::from_rdata(owner.clone(), TTL, data)));
        Some(records)
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

fn encode(message: &Message) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(SMALLEST_PAYLOAD.into());
    let mut encoder = BinEncoder::new(&mut bytes);
    message.emit(&mut encoder).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests;
