//! The decision about a message: drop it, answer it from the mesh, forward it, or wait for the pod's
//! workload.

use hickory_proto::op::{Header, MessageType};

use super::super::ServerContext;
use super::super::forward::MAX_MESSAGE;
use super::super::query::Query;
use super::super::reply::ReplyContext;
use super::super::wire;
use super::limits::MAX_DATAGRAM_QUERY;
use super::{Server, Transport};
use mesh::names::may_be_mine;
use mesh::{Snapshot, Workload};
use telemetry::{DnsQuery, DnsRefusal};

/// The decision about a message.
pub(super) enum Decision {
    /// No answer: the message is not a query.
    Drop,
    Reply(Vec<u8>),
    Forward(Box<ForwardedQuery>),
    /// The snapshot does not contain the pod's workload yet, and the answer depends on it.
    WaitForWorkload(Vec<u8>),
}

/// A query that the mesh cannot answer.
pub(super) struct ForwardedQuery {
    pub(super) bytes: Vec<u8>,
    /// `None` if it is not a plain query.
    pub(super) query: Option<Query>,
    pub(super) labels: DnsQuery,
    pub(super) transport: Transport,
}

impl ForwardedQuery {
    /// The response that reports a server failure.
    pub(super) fn server_failure(&self) -> Option<Vec<u8>> {
        match &self.query {
            Some(query) => Some(query.server_failure()),
            None => wire::server_failure(&self.bytes),
        }
    }
}

impl<C: ServerContext + 'static> Server<C> {
    /// Decides about a message, and counts it. `waited` is the result of the wait for the pod's
    /// workload, if the message has waited.
    pub(super) fn decide(
        &self,
        message: &[u8],
        transport: Transport,
        waited: Option<Result<(), DnsRefusal>>,
    ) -> Decision {
        let metrics = self.telemetry.dns();
        let max_length = match transport {
            Transport::Datagram => MAX_DATAGRAM_QUERY,
            Transport::Stream => MAX_MESSAGE,
        };
        let is_query = |header: &Header| {
            header.message_type == MessageType::Query && message.len() <= max_length
        };
        if wire::header(message).filter(is_query).is_none() {
            metrics.refused(DnsRefusal::Malformed);
            return Decision::Drop;
        }
        let mesh = self.context.mesh();
        let client = self.context.client(&mesh);
        let query = Query::decode(message);
        let lacks_client = client.is_none() && self.depends_on_client(&mesh, query.as_ref());
        if lacks_client && waited.is_none() {
            return Decision::WaitForWorkload(message.to_vec());
        }
        let record_type = wire::question(message).and_then(wire::record_type);
        let labels = DnsQuery::new(record_type, transport.label(), client.as_deref());
        metrics.asked(&labels);
        if lacks_client {
            let reason = waited.and_then(Result::err);
            metrics.refused(reason.unwrap_or(DnsRefusal::UnknownWorkload));
            return wire::server_failure(message).map_or(Decision::Drop, Decision::Reply);
        }
        let reply = query
            .as_ref()
            .zip(client.as_ref())
            .and_then(|(query, client)| self.answer_from_mesh(&mesh, client, query, transport));
        reply.map_or_else(
            || {
                Decision::Forward(Box::new(ForwardedQuery {
                    bytes: message.to_vec(),
                    query,
                    labels,
                    transport,
                }))
            },
            Decision::Reply,
        )
    }

    /// Whether the decision about a query depends on the pod's workload. Only names of the mesh
    /// depend on it; other queries are forwarded for every client.
    fn depends_on_client(&self, mesh: &Snapshot, query: Option<&Query>) -> bool {
        let query = query.filter(|query| query.family().is_some());
        let namespace = self.context.kubernetes_namespace();
        query.is_some_and(|query| may_be_mine(mesh, &self.config.domain, namespace, query.name()))
    }

    /// The mesh's answer, if it has one.
    fn answer_from_mesh(
        &self,
        mesh: &Snapshot,
        client: &Workload,
        query: &Query,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let reply = ReplyContext {
            mesh,
            client,
            domain: &self.config.domain,
            random: self.context.random(),
        };
        reply.answer_from_mesh(query, transport.max_answer(query))
    }
}
