//! Well-formed and malformed messages.

use proptest::prelude::*;

use super::*;

/// A response to `a. IN A`: the header's flags and counts, then records as bytes.
fn response(flags: u16, counts: [u16; 3], records: &[&[u8]]) -> Vec<u8> {
    let mut message = vec![0x12, 0x34];
    message.extend(flags.to_be_bytes());
    message.extend([0, 1]);
    message.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    message.extend(b"\x01a\0\0\x01\0\x01");
    message.extend(records.concat());
    message
}

/// A record whose owner is the question's name.
fn record(kind: u16, lifetime: u32, data: &[u8]) -> Vec<u8> {
    let mut record = vec![0xc0, 12];
    record.extend(kind.to_be_bytes());
    record.extend([0, 1]);
    record.extend(lifetime.to_be_bytes());
    record.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    record.extend(data);
    record
}

fn soa(lifetime: u32, minimum: u32) -> Vec<u8> {
    let mut data = vec![0, 0];
    data.extend([0; 16]);
    data.extend(minimum.to_be_bytes());
    record(SOA, lifetime, &data)
}

fn least(message: &[u8]) -> Option<u32> {
    Lifetimes::of(message).map(|lifetimes| lifetimes.least)
}

#[test]
fn an_answer_lasts_as_long_as_its_shortest_record() {
    let (one, two) = (record(1, 300, &[1; 4]), record(1, 60, &[2; 4]));
    let opt = record(OPT, 0, &[]);
    let answer = response(0x8180, [2, 0, 1], &[&one, &two, &opt]);
    assert_eq!(least(&answer), Some(60));
    let with_authority = response(0x8180, [1, 1, 0], &[&one, &record(2, 7, b"\0")]);
    assert_eq!(least(&with_authority), Some(7));
}

#[test]
fn what_does_not_exist_lasts_as_long_as_the_zone_says() {
    for flags in [0x8180, 0x8183] {
        assert_eq!(
            least(&response(flags, [0, 1, 0], &[&soa(300, 20)])),
            Some(20)
        );
        assert_eq!(
            least(&response(flags, [0, 1, 0], &[&soa(10, 20)])),
            Some(10)
        );
        assert_eq!(least(&response(flags, [0, 0, 0], &[])), Some(0));
    }
    // An alias to a name that does not exist.
    let alias = record(5, 300, b"\x01b\0");
    let denied = response(0x8183, [1, 1, 0], &[&alias, &soa(300, 20)]);
    assert_eq!(least(&denied), Some(20));
    assert_eq!(least(&response(0x8183, [1, 0, 0], &[&alias])), Some(0));
}

#[test]
fn lifetimes_are_counted_down_in_place() {
    let opt = record(OPT, 0x8000, &[]);
    let mut answer = response(0x8180, [1, 0, 1], &[&record(1, 300, &[1; 4]), &opt]);
    let lifetimes = Lifetimes::of(&answer).unwrap();
    lifetimes.count_down(&mut answer, 290);
    let later = response(0x8180, [1, 0, 1], &[&record(1, 10, &[1; 4]), &opt]);
    assert_eq!(answer, later);
    lifetimes.count_down(&mut answer, 290);
    assert_eq!(least(&answer), Some(0));
}

#[test]
fn half_a_message_is_none() {
    let whole = response(0x8180, [1, 0, 0], &[&record(1, 300, &[1; 4])]);
    assert_eq!(least(&whole), Some(300));
    for length in 0..whole.len() {
        assert_eq!(least(&whole[..length]), None, "{length} bytes");
    }
    let more = [&whole[..], b"x"].concat();
    assert_eq!(least(&more), None);
}

#[test]
fn a_question_is_one_whole_plain_name() {
    let asked = |counts: [u8; 2], name: &[u8]| {
        let mut message = vec![0, 0, 1, 0, counts[0], counts[1], 0, 0, 0, 0, 0, 0];
        message.extend(name);
        message.extend([0, 28, 0, 1]);
        question(&message).map(<[u8]>::to_vec)
    };
    assert_eq!(asked([0, 1], b"\x01a\0").unwrap(), b"\x01a\0\0\x1c\0\x01");
    assert_eq!(kind(&asked([0, 1], b"\x01a\0").unwrap()), Some(28));
    assert!(asked([0, 1], b"\0").is_some(), "the root");
    assert_eq!(asked([0, 0], b"\x01a\0"), None);
    assert_eq!(asked([0, 2], b"\x01a\0"), None);
    assert_eq!(asked([0, 1], b"\xc0\x0c"), None, "compressed");
    assert_eq!(asked([0, 1], b"\x40a\0"), None, "a length of no kind");
    let label = [&[63][..], &[b'a'; 63]].concat();
    let longest = [label.repeat(3), vec![61], vec![b'a'; 61], vec![0]].concat();
    assert_eq!(longest.len(), LONGEST_NAME);
    assert!(asked([0, 1], &longest).is_some());
    let longer = [label.repeat(3), vec![62], vec![b'a'; 62], vec![0]].concat();
    assert_eq!(asked([0, 1], &longer), None);
}

#[test]
fn letters_differ_in_names_only() {
    let (small, large) = (b"\x01a\0\0\x41\0\x01", b"\x01A\0\0\x41\0\x01");
    assert!(same_question(small, large));
    assert_eq!(in_small_letters(large), small);
    // Type 65 is not type 97, though A is a.
    assert!(!same_question(small, b"\x01a\0\0\x61\0\x01"));
    assert!(!same_question(small, b"\x01b\0\0\x41\0\x01"));
    assert!(!same_question(small, b"\x01a\0\0\x41\0\x03"));
    assert!(!same_question(small, b"\0\0\x41\0\x01"));
    assert!(!same_question(b"", b""));
}

#[test]
fn a_refusal_bears_the_querys_id_and_question() {
    let query = b"\xab\xcd\x01\x00\0\x01\0\0\0\0\0\x01\x03wWw\0\0\x41\0\x01rest";
    let refused = refusal(query, 2).unwrap();
    assert_eq!(
        refused,
        b"\xab\xcd\x81\x82\0\x01\0\0\0\0\0\0\x03wWw\0\0\x41\0\x01"
    );
    assert_eq!(refusal(b"too short", 2), None);
    let strange = b"\xab\xcd\x29\x10\0\x02\0\0\0\0\0\0";
    assert_eq!(
        refusal(strange, 2).unwrap(),
        b"\xab\xcd\xa9\x92\0\0\0\0\0\0\0\0"
    );
}

proptest! {
    #[test]
    fn no_byte_string_is_too_strange(
        message in prop::collection::vec(any::<u8>(), 0..600),
        counts in any::<[u8; 4]>(),
    ) {
        let mut message = message;
        // Counts this small make some of the bytes valid records.
        if message.len() > HEADER {
            for (place, count) in [5, 7, 9, 11].into_iter().zip(counts) {
                message[place - 1] = 0;
                message[place] = count % 3;
            }
        }
        if let Some(lifetimes) = Lifetimes::of(&message) {
            let length = message.len();
            lifetimes.count_down(&mut message, 5);
            prop_assert_eq!(message.len(), length);
        }
        drop(refusal(&message, 2));
    }
}
