//! Encodes the proxy's own responses to plain queries.
//!
//! `hickory-proto` encodes the parts of a message. Records are assembled here, because its own
//! `Record` compresses only the first 120 names of a message and counts a name in full before it
//! compresses it: longer answers would lose addresses that fit.

use std::net::IpAddr;

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Header, HeaderCounts, Message, Metadata, Query as Question};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{DNSClass, Name, RData};
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder};

use mesh::names::TTL;

/// The mark of a pointer to an earlier name (RFC 1035, section 4.1.4).
const POINTER: u16 = 0xc000;
/// The pointer to the question's name, which follows the header of 12 bytes.
const QUESTION_NAME: u16 = POINTER | 12;
/// The length of an EDNS pseudo-record without options (RFC 6891, section 6.1.2).
const EDNS_LENGTH: u16 = 11;

/// A response to a plain query.
#[derive(Debug)]
pub(super) struct Response<'a> {
    pub(super) metadata: Metadata,
    question: &'a Question,
    /// The name that the question's name is an alias of, if it is one; the addresses are its own.
    pub(super) canonical: Option<Name>,
    pub(super) addresses: &'a [IpAddr],
    edns: Option<Edns>,
    max_length: u16,
}

impl<'a> Response<'a> {
    /// A response without records, of at most `max_length` bytes (at least 512).
    pub(super) fn new(query: &'a Message, question: &'a Question, max_length: usize) -> Self {
        // Copies the id and the flags "recursion desired" and "checking disabled".
        let mut metadata = Metadata::response_from_request(&query.metadata);
        metadata.recursion_available = true;
        let edns = query.edns.as_ref().map(|request| {
            let mut edns = Edns::new();
            edns.set_max_payload(request.max_payload())
                .set_dnssec_ok(request.flags().dnssec_ok);
            edns
        });
        Self {
            metadata,
            question,
            canonical: None,
            addresses: &[],
            edns,
            max_length: u16::try_from(max_length).unwrap_or(u16::MAX),
        }
    }

    /// The bytes of the response. Records that do not fit are left out, and the response is marked
    /// as truncated.
    pub(super) fn encode(self) -> Vec<u8> {
        // Encoding cannot fail: records that are too long are left out, and the header, the question
        // and the EDNS record have at most 282 bytes. Without a message the client would wait.
        self.try_encode().unwrap_or_default()
    }

    fn try_encode(mut self) -> Result<Vec<u8>, ProtoError> {
        let mut message = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut message);
        let header = encoder.place::<Header>()?;
        self.question.emit(&mut encoder)?;
        let reserved = self.edns.as_ref().map_or(0, |_| EDNS_LENGTH);
        encoder.set_max_size(self.max_length.saturating_sub(reserved));
        let answers = self.emit_answers(&mut encoder)?;
        encoder.set_max_size(self.max_length);
        if let Some(edns) = &self.edns {
            edns.emit(&mut encoder)?;
        }
        let counts = HeaderCounts {
            queries: 1,
            answers,
            authorities: 0,
            additionals: u16::from(self.edns.is_some()),
        };
        let metadata = self.metadata;
        header.replace(&mut encoder, Header { metadata, counts })?;
        Ok(message)
    }

    /// Emits the records in order until one does not fit; returns their number.
    fn emit_answers(&mut self, encoder: &mut BinEncoder<'_>) -> Result<u16, ProtoError> {
        let alias = self.canonical.take().map(|name| RData::CNAME(CNAME(name)));
        let addresses = self.addresses.iter().map(|address| RData::from(*address));
        let (mut owner, mut count) = (QUESTION_NAME, 0);
        for data in alias.into_iter().chain(addresses) {
            let end = encoder.offset();
            match emit_record(encoder, owner, &data) {
                Ok(name) if matches!(data, RData::CNAME(_)) => owner = POINTER | name,
                Ok(_) => {}
                Err(ProtoError::MaxBufferSizeExceeded(_)) => {
                    // Removes the part of the record that fitted.
                    encoder.set_offset(end);
                    encoder.trim();
                    self.metadata.truncation = true;
                    break;
                }
                Err(error) => return Err(error),
            }
            count += 1;
        }
        Ok(count)
    }
}

/// Emits a record. `owner` is a pointer to the record's name. Returns the position of the record's
/// data.
fn emit_record(encoder: &mut BinEncoder<'_>, owner: u16, data: &RData) -> Result<u16, ProtoError> {
    encoder.emit_u16(owner)?;
    data.record_type().emit(encoder)?;
    DNSClass::IN.emit(encoder)?;
    encoder.emit_u32(TTL)?;
    let length_field = encoder.place::<u16>()?;
    let start = encoder.offset();
    data.emit(encoder)?;
    let too_long = |_| ProtoError::MaxBufferSizeExceeded(usize::from(u16::MAX));
    let length = u16::try_from(encoder.offset() - start).map_err(too_long)?;
    length_field.replace(encoder, length)?;
    u16::try_from(start).map_err(too_long)
}
