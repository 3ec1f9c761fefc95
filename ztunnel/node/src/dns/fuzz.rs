//! The way of a byte string through everything that reads one.

use std::time::{Duration, Instant};

use super::cache::{Cache, Key};
use super::example;
use super::query::Query;
use super::wire::{self, Header};
use mesh::names::{Answer, Question, answer};
use mesh::{Snapshot, Workload};

/// A mesh with one of everything that has a name.
pub(super) const MESH: &str = r#"
workloads:
- { uid: w0, name: db-0, workloadIps: ["10.0.0.1", "fd00::1"], services: { default/db.default.svc.cluster.local: {} } }
- { uid: w1, name: db-1, workloadIps: ["10.0.0.2"], services: { default/db.default.svc.cluster.local: {} } }
services:
- { name: web, hostname: web.default.svc.cluster.local, vips: ["/10.1.0.1", "/fd01::1"] }
- { name: db, hostname: db.default.svc.cluster.local }
- { name: wild, hostname: "*.example.com", vips: ["/240.240.0.1"] }
- { name: a, hostname: a, vips: ["/240.240.0.2"] }
"#;

/// What the client would be answered, if the mesh knows the name; a refusal otherwise.
///
/// # Panics
/// Where a promise is broken: the question of a reply is the query's, and a reply is no longer than
/// the client takes.
pub(super) fn parse(message: &[u8], mesh: &Snapshot, client: &Workload) -> Option<Vec<u8>> {
    as_an_answer(message);
    let refusal = wire::refusal(message, 2);
    let Some(query) = Query::of(message) else {
        return refusal;
    };
    let Some(family) = query.family() else {
        return Some(query.fail());
    };
    let question = Question {
        name: query.name(),
        family,
    };
    let said = match answer(mesh, "cluster.local", client, &question, 7) {
        Answer::NotMine => return Some(query.fail()),
        said => said,
    };
    let reply = query.respond(&said, query.payload());
    assert_eq!(wire::question(&reply), wire::question(message));
    assert!(reply.len() <= query.payload());
    Some(reply)
}

/// The same bytes, as if a resolver had sent them.
fn as_an_answer(message: &[u8]) {
    let Some(query) = wire::question(message).and_then(asking) else {
        return;
    };
    let resolver = ([192, 0, 2, 1], 53).into();
    let Some(key) = Key::of(1, resolver, &query) else {
        return;
    };
    let now = Instant::now();
    let mut cache = Cache::default();
    cache.put(key.clone(), message, now);
    for seconds in [0, 1, 3600] {
        let then = now + Duration::from_secs(seconds);
        let kept = cache.get(&key, (7, query.raw()), usize::MAX, then);
        if let Some(kept) = kept {
            assert_eq!(kept.len(), message.len());
            assert_eq!(Header::of(&kept).map(|header| header.id), Some(7));
        }
    }
}

/// The query with this question.
fn asking(question: &[u8]) -> Option<Query> {
    Query::of(&example::asking(7, question))
}
