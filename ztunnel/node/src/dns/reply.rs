//! The proxy's own reply to a DNS query: a pure function of the query and a snapshot.

use super::query::Query;
use super::wire;
use mesh::names::{Answer, Question, answer};
use mesh::{Snapshot, Workload};

/// The inputs of a reply, besides the query.
#[derive(Debug, Clone, Copy)]
pub struct ReplyContext<'a> {
    /// The snapshot of the mesh.
    pub mesh: &'a Snapshot,
    /// The workload of the client.
    pub client: &'a Workload,
    /// The cluster's domain, in lower case and without a trailing dot.
    pub domain: &'a str,
    /// Determines the order of the addresses.
    pub random: u64,
}

impl ReplyContext<'_> {
    /// The reply to a datagram whose query is not forwarded: the mesh's answer, or a server failure
    /// if the mesh does not contain the name. `None` if the message is shorter than a DNS header.
    #[must_use]
    pub fn reply(&self, message: &[u8]) -> Option<Vec<u8>> {
        let Some(query) = Query::decode(message) else {
            return wire::server_failure(message);
        };
        let answer_from_mesh = self.answer_from_mesh(&query, query.max_datagram());
        Some(answer_from_mesh.unwrap_or_else(|| query.server_failure()))
    }

    /// The response with the mesh's answer, of at most `max_length` bytes. `None` if the mesh does
    /// not contain the name.
    pub(super) fn answer_from_mesh(&self, query: &Query, max_length: usize) -> Option<Vec<u8>> {
        let question = Question {
            name: query.name(),
            family: query.family()?,
        };
        match answer(self.mesh, self.domain, self.client, &question, self.random) {
            Answer::NotMine => None,
            answer => Some(query.respond(&answer, max_length)),
        }
    }
}
