//! Which answers are cached, for which pod and for how long.

use proptest::prelude::*;

use super::super::example;
use super::*;

const RESOLVER: ([u8; 4], u16) = ([192, 0, 2, 1], 53);

fn query(name: &str, kind: u16) -> Query {
    Query::of(&example::query_for(0x4321, &example::question(name, kind))).unwrap()
}

fn key(pod: u64, name: &str) -> Key {
    Key::of(pod, RESOLVER.into(), &query(name, 1)).unwrap()
}

/// A response with one record of this TTL.
fn response(name: &str, flags: [u8; 2], lifetime: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 9, flags[0], flags[1], 0, 1, 0, 1, 0, 0, 0, 0];
    bytes.extend(query(name, 1).raw());
    bytes.extend([0xc0, 12, 0, 1, 0, 1]);
    bytes.extend(lifetime.to_be_bytes());
    bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

const GOOD: [u8; 2] = [0x81, 0x80];

fn kept(cache: &Cache, pod: u64, name: &str, now: Instant) -> Option<Vec<u8>> {
    cache.get(&key(pod, name), &query(name, 1), 512, now)
}

#[test]
fn an_answer_counts_down_until_it_is_over() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    cache.put(key(1, "a.b"), &response("a.b", GOOD, 60, &[1; 4]), now);
    let later = |seconds| now + Duration::from_secs(seconds);
    for (seconds, left) in [(0, 60), (1, 59), (59, 1)] {
        let answer = kept(&cache, 1, "a.b", later(seconds)).unwrap();
        let mut expected = response("a.b", GOOD, left, &[1; 4]);
        expected[..2].copy_from_slice(&[0x43, 0x21]);
        assert_eq!(answer, expected, "after {seconds} s");
    }
    assert_eq!(kept(&cache, 1, "a.b", later(60)), None);
}

#[test]
fn an_answer_is_given_in_the_letters_of_the_question() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    cache.put(key(1, "a.b"), &response("a.b", GOOD, 60, &[1; 4]), now);
    let answer = kept(&cache, 1, "A.b", now).unwrap();
    assert_eq!(wire::question(&answer), Some(query("A.b", 1).raw()));
}

#[test]
fn an_answer_is_for_one_pod_one_resolver_and_one_question() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    cache.put(key(1, "a.b"), &response("a.b", GOOD, 60, &[1; 4]), now);
    assert_eq!(kept(&cache, 2, "a.b", now), None);
    assert_eq!(kept(&cache, 1, "a.c", now), None);
    let asked = query("a.b", 1);
    let get = |key: Key, most| cache.get(&key, &asked, most, now);
    let elsewhere = ([192, 0, 2, 2], 53).into();
    assert_eq!(get(Key::of(1, elsewhere, &asked).unwrap(), 512), None);
    let other_type = Key::of(1, RESOLVER.into(), &query("a.b", 28)).unwrap();
    assert_eq!(get(other_type, 512), None);
    assert_eq!(
        get(key(1, "a.b"), 20),
        None,
        "it is too long for the client"
    );
}

#[test]
fn only_what_is_whole_and_certain_is_kept() {
    let now = Instant::now();
    let refused = [
        ("a failure", response("a.b", [0x81, 0x82], 60, &[1; 4])),
        (
            "a truncated one",
            response("a.b", [0x83, 0x80], 60, &[1; 4]),
        ),
        ("one for no time", response("a.b", GOOD, 0, &[1; 4])),
        ("another question's", response("a.c", GOOD, 60, &[1; 4])),
        (
            "half of one",
            response("a.b", GOOD, 60, &[1; 4])[..30].to_vec(),
        ),
        (
            "a denial that names no zone",
            response("a.b", [0x81, 0x83], 60, &[1; 4]),
        ),
        ("nothing", Vec::new()),
    ];
    for (what, answer) in refused {
        let mut cache = Cache::default();
        cache.put(key(1, "a.b"), &answer, now);
        assert!(cache.entries.is_empty() && cache.bytes == 0, "{what}");
    }
}

#[test]
fn nothing_is_kept_for_ever() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    cache.put(
        key(1, "a.b"),
        &response("a.b", GOOD, u32::MAX, &[1; 4]),
        now,
    );
    assert!(kept(&cache, 1, "a.b", now + LONGEST - Duration::from_secs(1)).is_some());
    assert_eq!(kept(&cache, 1, "a.b", now + LONGEST), None);
}

#[test]
fn the_oldest_makes_room() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    let name = |number: usize| format!("host-{number}.b");
    for number in 0..MOST_ENTRIES + 10 {
        let name = name(number);
        cache.put(key(1, &name), &response(&name, GOOD, 60, &[1; 4]), now);
    }
    assert_eq!(cache.entries.len(), MOST_ENTRIES);
    assert_eq!(kept(&cache, 1, &name(9), now), None);
    assert!(kept(&cache, 1, &name(10), now).is_some());
    // Large answers are evicted, too.
    for number in 0..200 {
        let name = name(number);
        cache.put(
            key(2, &name),
            &response(&name, GOOD, 60, &vec![1; 40_000]),
            now,
        );
    }
    assert!(cache.bytes <= MOST_BYTES);
    assert!(kept_bytes(&cache) == cache.bytes);
}

fn kept_bytes(cache: &Cache) -> usize {
    cache.entries.values().map(|entry| entry.answer.len()).sum()
}

#[test]
fn what_is_replaced_is_counted_once() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    for lifetime in 1..20_000 {
        cache.put(
            key(1, "a.b"),
            &response("a.b", GOOD, lifetime, &[1; 4]),
            now,
        );
    }
    assert!(cache.order.len() <= 2 * MOST_ENTRIES);
    assert_eq!(cache.entries.len(), 1);
    assert_eq!(kept_bytes(&cache), cache.bytes);
}

#[test]
fn a_pod_that_leaves_takes_its_answers_along() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    for pod in [1, 2] {
        cache.put(key(pod, "a.b"), &response("a.b", GOOD, 60, &[1; 4]), now);
    }
    cache.forget(1);
    assert_eq!(kept(&cache, 1, "a.b", now), None);
    assert!(kept(&cache, 2, "a.b", now).is_some());
    assert_eq!(kept_bytes(&cache), cache.bytes);
    cache.forget(2);
    assert!(cache.bytes == 0 && cache.order.is_empty());
}

proptest! {
    #[test]
    fn an_answer_of_any_bytes_is_returned_whole_or_not_at_all(
        records in prop::collection::vec(any::<u8>(), 0..200),
        counts in any::<[u8; 3]>(),
    ) {
        let mut answer = vec![0, 9, 0x81, 0x80, 0, 1, 0, counts[0], 0, counts[1], 0, counts[2]];
        answer.extend(query("a.b", 1).raw());
        answer.extend(records);
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.put(key(1, "a.b"), &answer, now);
        for seconds in [0, 1, 3600] {
            if let Some(kept) = kept(&cache, 1, "a.b", now + Duration::from_secs(seconds)) {
                prop_assert_eq!(kept.len(), answer.len());
                prop_assert_eq!(&kept[..2], &[0x43, 0x21]);
            }
        }
    }
}
