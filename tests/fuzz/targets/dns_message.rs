//! A DNS message, used as an application's query and as a resolver's answer. A reply has the id and
//! the question of the query and fits into the client's buffer; a cached answer is returned
//! complete.
#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use mesh::{Snapshot, Workload, local};
use node::dns::{Cache, CacheKey, Query, ReplyContext};
use ztunnel_fuzz::fuzz_target;

const HEADER: usize = 12;

/// A mesh with one of each kind of named object.
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

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| local::parse(MESH).unwrap().into_snapshot());
static CLIENT: LazyLock<Workload> =
    LazyLock::new(|| Workload::new("client", "client", "default", "default").unwrap());

fuzz_target!(|message: &[u8]| {
    as_query(message);
    as_answer(message);
});

fn as_query(message: &[u8]) {
    let context = ReplyContext {
        mesh: &SNAPSHOT,
        client: &CLIENT,
        domain: "cluster.local",
        random: 7,
    };
    let reply = context.reply(message);
    assert_eq!(reply.is_some(), message.len() >= HEADER);
    let Some(reply) = reply else {
        return;
    };
    assert_eq!(reply[..2], message[..2]);
    assert_eq!(reply[2] & 0x80, 0x80, "a reply is a response");
    if Query::decode(message).is_some() {
        let question = question(message).unwrap();
        assert_eq!(self::question(&reply), Some(question));
        assert!(reply.len() <= buffer(&message[HEADER + question.len()..]));
    }
}

/// Caches the message as the answer to its own question, and reads it back at three times.
fn as_answer(message: &[u8]) {
    let Some(question) = question(message) else {
        return;
    };
    let query = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], question].concat();
    let Some(query) = Query::decode(&query) else {
        return;
    };
    let resolver = ([192, 0, 2, 1], 53).into();
    let key = CacheKey::of(1, resolver, &query).unwrap();
    let now = Instant::now();
    let mut cache = Cache::default();
    cache.put(key.clone(), message, now);
    for seconds in [0, 1, 3600] {
        let later = now + Duration::from_secs(seconds);
        if let Some(cached) = cache.get(&key, &query, usize::MAX, later) {
            assert_eq!(cached.len(), message.len());
            assert_eq!(cached[..2], [0, 7]);
            assert_eq!(self::question(&cached), Some(question));
        }
    }
}

/// The only question of a message: an uncompressed name, the type and the class.
fn question(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut end = HEADER;
    loop {
        match message.get(end)? {
            0 => return message.get(HEADER..end + 5),
            length @ 1..=63 => end += 1 + usize::from(*length),
            _ => return None,
        }
    }
}

/// The largest reply to a plain query. `additional` is empty or one EDNS record (RFC 6891, section
/// 6.1.2), whose class is the size of the client's buffer.
fn buffer(additional: &[u8]) -> usize {
    match additional {
        [0, 0, 41, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])).max(512),
        _ => 512,
    }
}
