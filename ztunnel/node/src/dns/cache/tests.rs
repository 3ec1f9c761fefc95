//! Which answers are cached, for which pod and for how long.

use proptest::prelude::*;

use super::super::example;
use super::*;

const RESOLVER: ([u8; 4], u16) = ([192, 0, 2, 1], 53);

fn query(name: &str, kind: u16) -> Query {
    Query::decode(&example::query_for(0x4321, &example::question(name, kind))).unwrap()
}

fn key(pod: u64, name: &str) -> Key {
    Key::of(pod, RESOLVER.into(), &query(name, 1)).unwrap()
}

/// A response with one record of this TTL.
fn response(name: &str, flags: [u8; 2], ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 9, flags[0], flags[1], 0, 1, 0, 1, 0, 0, 0, 0];
    bytes.extend(query(name, 1).question_bytes());
    bytes.extend([0xc0, 12, 0, 1, 0, 1]);
    bytes.extend(ttl.to_be_bytes());
    bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

const GOOD: [u8; 2] = [0x81, 0x80];

fn cached(cache: &Cache, pod: u64, name: &str, now: Instant) -> Option<Vec<u8>> {
    cache.get(&key(pod, name), &query(name, 1), 512, now)
}

#[test]
fn the_ttl_decreases_until_the_answer_expires() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    cache.put(key(1, "a.b"), &response("a.b", GOOD, 60, &[1; 4]), now);
    let later = |seconds| now + Duration::from_secs(seconds);
    for (seconds, left) in [(0, 60), (1, 59), (59, 1)] {
        let answer = cached(&cache, 1, "a.b", later(seconds)).unwrap();
        let mut expected = response("a.b", GOOD, left, &[1; 4]);
        expected[..2].copy_from_slice(&[0x43, 0x21]);
        assert_eq!(answer, expected, "after {seconds} s");
    }
    assert_eq!(cached(&cache, 1, "a.b", later(60)), None);
}

#[test]
fn a_cached_answer_has_the_letter_case_of_the_query() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    cache.put(key(1, "a.b"), &response("a.b", GOOD, 60, &[1; 4]), now);
    let answer = cached(&cache, 1, "A.b", now).unwrap();
    assert_eq!(
        wire::question(&answer),
        Some(query("A.b", 1).question_bytes())
    );
}

#[test]
fn an_answer_is_cached_for_one_pod_one_resolver_and_one_question() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    cache.put(key(1, "a.b"), &response("a.b", GOOD, 60, &[1; 4]), now);
    assert_eq!(cached(&cache, 2, "a.b", now), None);
    assert_eq!(cached(&cache, 1, "a.c", now), None);
    let query_ab = query("a.b", 1);
    let get = |key: Key, max_length| cache.get(&key, &query_ab, max_length, now);
    let elsewhere = ([192, 0, 2, 2], 53).into();
    assert_eq!(get(Key::of(1, elsewhere, &query_ab).unwrap(), 512), None);
    let other_type = Key::of(1, RESOLVER.into(), &query("a.b", 28)).unwrap();
    assert_eq!(get(other_type, 512), None);
    assert_eq!(
        get(key(1, "a.b"), 20),
        None,
        "the answer is too long for the client"
    );
}

#[test]
fn only_complete_final_answers_are_cached() {
    let now = Instant::now();
    let not_cached = [
        (
            "a server failure",
            response("a.b", [0x81, 0x82], 60, &[1; 4]),
        ),
        (
            "a truncated answer",
            response("a.b", [0x83, 0x80], 60, &[1; 4]),
        ),
        ("a TTL of zero", response("a.b", GOOD, 0, &[1; 4])),
        (
            "an answer to another question",
            response("a.c", GOOD, 60, &[1; 4]),
        ),
        (
            "an incomplete message",
            response("a.b", GOOD, 60, &[1; 4])[..30].to_vec(),
        ),
        (
            "a negative answer without an SOA record",
            response("a.b", [0x81, 0x83], 60, &[1; 4]),
        ),
        ("no bytes", Vec::new()),
    ];
    for (case, answer) in not_cached {
        let mut cache = Cache::default();
        cache.put(key(1, "a.b"), &answer, now);
        assert!(cache.entries.is_empty() && cache.bytes == 0, "{case}");
    }
}

#[test]
fn the_age_of_an_answer_is_limited() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    cache.put(
        key(1, "a.b"),
        &response("a.b", GOOD, u32::MAX, &[1; 4]),
        now,
    );
    assert!(cached(&cache, 1, "a.b", now + MAX_AGE - Duration::from_secs(1)).is_some());
    assert_eq!(cached(&cache, 1, "a.b", now + MAX_AGE), None);
}

#[test]
fn the_oldest_answer_is_evicted() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    let name = |number: usize| format!("host-{number}.b");
    for number in 0..MAX_ENTRIES + 10 {
        let name = name(number);
        cache.put(key(1, &name), &response(&name, GOOD, 60, &[1; 4]), now);
    }
    assert_eq!(cache.entries.len(), MAX_ENTRIES);
    assert_eq!(cached(&cache, 1, &name(9), now), None);
    assert!(cached(&cache, 1, &name(10), now).is_some());
    // Large answers are evicted, too.
    for number in 0..200 {
        let name = name(number);
        cache.put(
            key(2, &name),
            &response(&name, GOOD, 60, &vec![1; 40_000]),
            now,
        );
    }
    assert!(cache.bytes <= MAX_BYTES);
    assert!(cached_bytes(&cache) == cache.bytes);
}

fn cached_bytes(cache: &Cache) -> usize {
    cache.entries.values().map(|entry| entry.answer.len()).sum()
}

#[test]
fn a_replaced_answer_is_counted_once() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    for ttl in 1..20_000 {
        cache.put(key(1, "a.b"), &response("a.b", GOOD, ttl, &[1; 4]), now);
    }
    assert!(cache.order.len() <= 2 * MAX_ENTRIES);
    assert_eq!(cache.entries.len(), 1);
    assert_eq!(cached_bytes(&cache), cache.bytes);
}

#[test]
fn the_answers_of_a_removed_pod_are_removed() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    for pod in [1, 2] {
        cache.put(key(pod, "a.b"), &response("a.b", GOOD, 60, &[1; 4]), now);
    }
    cache.remove_pod(1);
    assert_eq!(cached(&cache, 1, "a.b", now), None);
    assert!(cached(&cache, 2, "a.b", now).is_some());
    assert_eq!(cached_bytes(&cache), cache.bytes);
    cache.remove_pod(2);
    assert!(cache.bytes == 0 && cache.order.is_empty());
}

proptest! {
    #[test]
    fn an_answer_of_any_bytes_is_returned_complete_or_not_at_all(
        records in prop::collection::vec(any::<u8>(), 0..200),
        counts in any::<[u8; 3]>(),
    ) {
        let mut answer = vec![0, 9, 0x81, 0x80, 0, 1, 0, counts[0], 0, counts[1], 0, counts[2]];
        answer.extend(query("a.b", 1).question_bytes());
        answer.extend(records);
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.put(key(1, "a.b"), &answer, now);
        for seconds in [0, 1, 3600] {
            if let Some(found) = cached(&cache, 1, "a.b", now + Duration::from_secs(seconds)) {
                prop_assert_eq!(found.len(), answer.len());
                prop_assert_eq!(&found[..2], &[0x43, 0x21]);
            }
        }
    }
}
