//! DNS queries of applications, and the proxy's own responses.
//!
//! Only plain queries are understood: one question of the class IN, and at most EDNS besides it.
//! Other queries are forwarded to the application's resolver.

use hickory_proto::op::{
    HeaderCounts, Message, MessageType, OpCode, Query as Question, ResponseCode,
};
use hickory_proto::rr::{DNSClass, Name, RecordType};

use super::response::Response;
use super::wire;
use mesh::names::{Answer, Family};

/// A plain query.
#[derive(Debug)]
pub struct Query {
    message: Message,
    question: Question,
    /// The question as the client sent it.
    question_bytes: Vec<u8>,
    /// The name in lower case, without the trailing dot; empty if it cannot be a host name.
    name: String,
}

/// The flags of a query that its answer depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct QueryFlags {
    edns: bool,
    dnssec_ok: bool,
    recursion_desired: bool,
    checking_disabled: bool,
}

impl Query {
    /// Decodes a message if it is a plain query.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        // The counts are checked first: nothing else bounds the work of decoding.
        let HeaderCounts {
            queries: 1,
            answers: 0,
            authorities: 0,
            additionals: 0 | 1,
        } = wire::header(bytes)?.counts
        else {
            return None;
        };
        let question_bytes = wire::question(bytes)?;
        let mut message = Message::from_vec(bytes).ok()?;
        let question = message.queries.pop()?;
        let is_plain = message.metadata.message_type == MessageType::Query
            && message.metadata.op_code == OpCode::Query
            && !message.metadata.truncation
            && question.query_class() == DNSClass::IN
            && message.additionals.is_empty()
            && message.signature.is_none()
            && message.edns.as_ref().is_none_or(|edns| edns.version() == 0);
        is_plain.then(|| Self {
            question_bytes: question_bytes.to_vec(),
            name: host_name(question.name()),
            message,
            question,
        })
    }

    /// The queried name in lower case, without a trailing dot; empty if it cannot be a host name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The client's query id.
    pub(super) const fn id(&self) -> u16 {
        self.message.metadata.id
    }

    /// The question as the client sent it.
    pub(super) fn question_bytes(&self) -> &[u8] {
        &self.question_bytes
    }

    /// The queried address family, if the query is for addresses.
    pub(super) fn family(&self) -> Option<Family> {
        match self.question.query_type() {
            RecordType::A => Some(Family::V4),
            RecordType::AAAA => Some(Family::V6),
            _ => None,
        }
    }

    /// The maximum length of a datagram that the client accepts, in bytes; at least 512 (RFC 1035,
    /// section 4.2.1; RFC 6891, section 6.2.3).
    pub(super) fn max_datagram(&self) -> usize {
        self.message.max_payload().into()
    }

    /// The flags that the answer depends on. `None` if the query has EDNS options, because the
    /// answer may then be specific to the client.
    pub(super) fn flags(&self) -> Option<QueryFlags> {
        let metadata = &self.message.metadata;
        let edns = self.message.edns.as_ref();
        let has_options = edns.is_some_and(|edns| !edns.options().as_ref().is_empty());
        (!has_options).then(|| QueryFlags {
            edns: edns.is_some(),
            dnssec_ok: edns.is_some_and(|edns| edns.flags().dnssec_ok),
            recursion_desired: metadata.recursion_desired,
            checking_disabled: metadata.checking_disabled,
        })
    }

    /// The response with the mesh's answer, of at most `max_length` bytes: records that do not fit
    /// are left out, and the response is marked as truncated.
    pub(super) fn respond(&self, answer: &Answer, max_length: usize) -> Vec<u8> {
        let mut response = Response::new(&self.message, &self.question, max_length);
        response.metadata.authoritative = true;
        if let Answer::Records {
            addresses,
            canonical,
        } = answer
        {
            response.canonical = canonical.as_deref().and_then(|name| self.prefix(name));
            // The addresses belong to the canonical name.
            if response.canonical.is_some() == canonical.is_some() {
                response.addresses = addresses;
            }
        }
        response.encode()
    }

    /// The response that reports a server failure.
    pub(super) fn server_failure(&self) -> Vec<u8> {
        let mut response = Response::new(&self.message, &self.question, self.max_datagram());
        response.metadata.response_code = ResponseCode::ServFail;
        response.encode()
    }

    /// The first labels of the queried name, as many as `canonical` has, in the letter case of the
    /// question.
    fn prefix(&self, canonical: &str) -> Option<Name> {
        let labels = canonical.split('.').count();
        Name::from_labels(self.question.name().iter().take(labels)).ok()
    }
}

/// A name as text, in lower case. Empty if it has bytes that are not allowed in host names.
fn host_name(name: &Name) -> String {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_*".contains(byte);
        if !label.iter().all(is_allowed) {
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
