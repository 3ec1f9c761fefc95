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
fn record(record_type: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut record = vec![0xc0, 12];
    record.extend(record_type.to_be_bytes());
    record.extend([0, 1]);
    record.extend(ttl.to_be_bytes());
    record.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    record.extend(data);
    record
}

fn soa(ttl: u32, minimum: u32) -> Vec<u8> {
    let mut data = vec![0, 0];
    data.extend([0; 16]);
    data.extend(minimum.to_be_bytes());
    record(SOA, ttl, &data)
}

fn min_ttl(message: &[u8]) -> Option<u32> {
    Ttls::of(message).map(|ttls| ttls.min)
}

#[test]
fn an_answer_is_cached_for_the_smallest_ttl() {
    let (one, two) = (record(1, 300, &[1; 4]), record(1, 60, &[2; 4]));
    let opt = record(OPT, 0, &[]);
    let answer = response(0x8180, [2, 0, 1], &[&one, &two, &opt]);
    assert_eq!(min_ttl(&answer), Some(60));
    let with_authority = response(0x8180, [1, 1, 0], &[&one, &record(2, 7, b"\0")]);
    assert_eq!(min_ttl(&with_authority), Some(7));
}

#[test]
fn a_negative_answer_is_cached_for_the_ttl_of_the_soa_record() {
    for flags in [0x8180, 0x8183] {
        assert_eq!(
            min_ttl(&response(flags, [0, 1, 0], &[&soa(300, 20)])),
            Some(20)
        );
        assert_eq!(
            min_ttl(&response(flags, [0, 1, 0], &[&soa(10, 20)])),
            Some(10)
        );
        assert_eq!(min_ttl(&response(flags, [0, 0, 0], &[])), Some(0));
    }
    // An alias to a name that does not exist.
    let alias = record(5, 300, b"\x01b\0");
    let denied = response(0x8183, [1, 1, 0], &[&alias, &soa(300, 20)]);
    assert_eq!(min_ttl(&denied), Some(20));
    assert_eq!(min_ttl(&response(0x8183, [1, 0, 0], &[&alias])), Some(0));
}

#[test]
fn ttls_are_decremented_in_place() {
    let opt = record(OPT, 0x8000, &[]);
    let mut answer = response(0x8180, [1, 0, 1], &[&record(1, 300, &[1; 4]), &opt]);
    let ttls = Ttls::of(&answer).unwrap();
    ttls.subtract(&mut answer, 290);
    let later = response(0x8180, [1, 0, 1], &[&record(1, 10, &[1; 4]), &opt]);
    assert_eq!(answer, later);
    ttls.subtract(&mut answer, 290);
    assert_eq!(min_ttl(&answer), Some(0));
}

#[test]
fn an_incomplete_message_is_refused() {
    let whole = response(0x8180, [1, 0, 0], &[&record(1, 300, &[1; 4])]);
    assert_eq!(min_ttl(&whole), Some(300));
    for length in 0..whole.len() {
        assert_eq!(min_ttl(&whole[..length]), None, "{length} bytes");
    }
    let more = [&whole[..], b"x"].concat();
    assert_eq!(min_ttl(&more), None);
}

#[test]
fn a_question_has_one_complete_uncompressed_name() {
    let question_of = |counts: [u8; 2], name: &[u8]| {
        let mut message = vec![0, 0, 1, 0, counts[0], counts[1], 0, 0, 0, 0, 0, 0];
        message.extend(name);
        message.extend([0, 28, 0, 1]);
        question(&message).map(<[u8]>::to_vec)
    };
    assert_eq!(
        question_of([0, 1], b"\x01a\0").unwrap(),
        b"\x01a\0\0\x1c\0\x01"
    );
    assert_eq!(
        record_type(&question_of([0, 1], b"\x01a\0").unwrap()),
        Some(28)
    );
    assert!(question_of([0, 1], b"\0").is_some(), "the root");
    assert_eq!(question_of([0, 0], b"\x01a\0"), None);
    assert_eq!(question_of([0, 2], b"\x01a\0"), None);
    assert_eq!(question_of([0, 1], b"\xc0\x0c"), None, "compressed");
    assert_eq!(
        question_of([0, 1], b"\x40a\0"),
        None,
        "a reserved label type"
    );
    let label = [&[63][..], &[b'a'; 63]].concat();
    let longest = [label.repeat(3), vec![61], vec![b'a'; 61], vec![0]].concat();
    assert_eq!(longest.len(), MAX_NAME_LENGTH);
    assert!(question_of([0, 1], &longest).is_some());
    let longer = [label.repeat(3), vec![62], vec![b'a'; 62], vec![0]].concat();
    assert_eq!(question_of([0, 1], &longer), None);
}

#[test]
fn letter_case_is_ignored_in_names_only() {
    let (lower, upper) = (b"\x01a\0\0\x41\0\x01", b"\x01A\0\0\x41\0\x01");
    assert!(same_question(lower, upper));
    assert_eq!(lowercase_question(upper), lower);
    // Type 65 is not type 97, though A is a.
    assert!(!same_question(lower, b"\x01a\0\0\x61\0\x01"));
    assert!(!same_question(lower, b"\x01b\0\0\x41\0\x01"));
    assert!(!same_question(lower, b"\x01a\0\0\x41\0\x03"));
    assert!(!same_question(lower, b"\0\0\x41\0\x01"));
    assert!(!same_question(b"", b""));
}

#[test]
fn a_server_failure_has_the_id_and_the_question_of_the_query() {
    let query = b"\xab\xcd\x01\x00\0\x01\0\0\0\0\0\x01\x03wWw\0\0\x41\0\x01rest";
    let failure = server_failure(query).unwrap();
    assert_eq!(
        failure,
        b"\xab\xcd\x81\x82\0\x01\0\0\0\0\0\0\x03wWw\0\0\x41\0\x01"
    );
    assert_eq!(server_failure(b"too short"), None);
    let update = b"\xab\xcd\x29\x10\0\x02\0\0\0\0\0\0";
    assert_eq!(
        server_failure(update).unwrap(),
        b"\xab\xcd\xa9\x92\0\0\0\0\0\0\0\0"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_handled(
        message in prop::collection::vec(any::<u8>(), 0..600),
        counts in any::<[u8; 4]>(),
    ) {
        let mut message = message;
        // Counts this small make some of the bytes valid records.
        if message.len() > HEADER_LENGTH {
            for (at, count) in [5, 7, 9, 11].into_iter().zip(counts) {
                message[at - 1] = 0;
                message[at] = count % 3;
            }
        }
        if let Some(ttls) = Ttls::of(&message) {
            let length = message.len();
            ttls.subtract(&mut message, 5);
            prop_assert_eq!(message.len(), length);
        }
        drop(server_failure(&message));
    }
}
