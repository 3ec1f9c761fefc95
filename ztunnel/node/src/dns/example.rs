//! Test data: queries as applications send them, and a mesh that answers them.

use std::sync::LazyLock;

use super::ReplyContext;
use super::query::Query;
use super::wire;
use mesh::{Snapshot, Workload};

/// A mesh with one resource of each kind that has a name.
const MESH: &str = r#"
workloads:
- { uid: w0, name: db-0, workloadIps: ["10.0.0.1", "fd00::1"], services: { default/db.default.svc.cluster.local: {} } }
- { uid: w1, name: db-1, workloadIps: ["10.0.0.2"], services: { default/db.default.svc.cluster.local: {} } }
services:
- { name: web, hostname: web.default.svc.cluster.local, vips: ["/10.1.0.1", "/fd01::1"] }
- { name: db, hostname: db.default.svc.cluster.local }
- { name: wild, hostname: "*.example.com", vips: ["/240.240.0.1"] }
- { name: a, hostname: a, vips: ["/240.240.0.2"] }
"#;

static SNAPSHOT: LazyLock<Snapshot> =
    LazyLock::new(|| mesh::local::parse(MESH).unwrap().into_snapshot());

/// The flags and the counts of a query: recursion desired, one question.
const FLAGS_AND_COUNTS: [u8; 10] = [1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
/// The type of a question for IPv4 addresses.
const A: u16 = 1;

/// The wire form of a name: each label is preceded by its length, and an empty label ends it.
pub(super) fn name<L: AsRef<[u8]>>(labels: impl IntoIterator<Item = L>) -> Vec<u8> {
    let mut name = Vec::new();
    for label in labels {
        let label = label.as_ref();
        name.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        name.extend(label);
    }
    name.push(0);
    name
}

/// A question for records of a type and of the class IN.
pub(super) fn question(text: &str, record_type: u16) -> Vec<u8> {
    let mut question = name(text.split('.'));
    question.extend(record_type.to_be_bytes());
    question.extend([0, 1]);
    question
}

/// A query with this question.
pub(super) fn query_for(id: u16, question: &[u8]) -> Vec<u8> {
    [&id.to_be_bytes()[..], &FLAGS_AND_COUNTS, question].concat()
}

/// A query for IPv4 addresses.
pub(super) fn query(id: u16, name: &str) -> Vec<u8> {
    query_for(id, &question(name, A))
}

/// The reply of [`MESH`] to a client in the namespace `default`.
///
/// Panics unless the reply repeats the query's question and fits the client's buffer.
pub(super) fn reply(message: &[u8]) -> Option<Vec<u8>> {
    let client = Workload::new("client", "client", "default", "default").unwrap();
    let context = ReplyContext {
        mesh: &SNAPSHOT,
        client: &client,
        domain: "cluster.local",
        random: 7,
    };
    let reply = context.reply(message);
    if let (Some(reply), Some(query)) = (&reply, Query::decode(message)) {
        assert_eq!(wire::question(reply), wire::question(message));
        assert!(reply.len() <= query.max_datagram());
    }
    reply
}
