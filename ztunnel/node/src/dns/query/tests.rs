//! Decoding of queries, and responses to them.

use hickory_proto::rr::rdata::opt::EdnsOption;
use proptest::prelude::*;

use super::super::example;
use super::*;

/// A query for addresses: header, question, and the bytes after them.
fn bytes(flags: [u8; 2], additional: u8, question: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut message = vec![
        0x12, 0x34, flags[0], flags[1], 0, 1, 0, 0, 0, 0, 0, additional,
    ];
    message.extend(question);
    message.extend(rest);
    message
}

const QUESTION: &[u8] = b"\x03WwW\x07example\x03com\0\0\x01\0\x01";

/// An EDNS pseudo-record: payload, version, flags, options.
fn opt(payload: u16, version: u8, dnssec: bool, options: &[u8]) -> Vec<u8> {
    let mut record = vec![0, 0, 41];
    record.extend(payload.to_be_bytes());
    record.extend([0, version, if dnssec { 0x80 } else { 0 }, 0]);
    record.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
    record.extend(options);
    record
}

fn records(addresses: u8) -> Answer {
    Answer::Records {
        addresses: (0..addresses).map(|last| [10, 0, 0, last].into()).collect(),
        canonical: None,
    }
}

/// The records of an answer as text.
fn answers(reply: &Message) -> Vec<String> {
    reply.answers.iter().map(ToString::to_string).collect()
}

#[test]
fn a_plain_query_is_decoded() {
    let query = Query::decode(&bytes([1, 0], 0, QUESTION, &[])).unwrap();
    assert_eq!(query.name(), "www.example.com");
    assert_eq!(query.family(), Some(Family::V4));
    assert_eq!(query.max_datagram(), 512);
    assert_eq!(query.question_bytes(), QUESTION);
    let query = Query::decode(&bytes([1, 0], 1, QUESTION, &opt(1232, 0, true, &[]))).unwrap();
    assert_eq!(query.max_datagram(), 1232);
    let small = Query::decode(&bytes([1, 0], 1, QUESTION, &opt(100, 0, false, &[]))).unwrap();
    assert_eq!(small.max_datagram(), 512);
}

#[test]
fn other_messages_are_not_plain_queries() {
    let (none, other_class): (&[u8], &[u8]) = (&[], b"\x01a\0\0\x01\0\x03");
    let twice = [opt(512, 0, false, none), opt(512, 0, false, none)].concat();
    let others = [
        ("a response", bytes([0x81, 0], 0, QUESTION, none)),
        ("an update", bytes([0x29, 0], 0, QUESTION, none)),
        ("a truncated query", bytes([3, 0], 0, QUESTION, none)),
        ("another class", bytes([1, 0], 0, other_class, none)),
        (
            "another version of EDNS",
            bytes([1, 0], 1, QUESTION, &opt(512, 1, false, none)),
        ),
        ("EDNS twice", bytes([1, 0], 2, QUESTION, &twice)),
        (
            "a record besides EDNS",
            bytes([1, 0], 1, QUESTION, b"\0\0\x01\0\x01\0\0\0\0\0\x04abcd"),
        ),
        (
            "fewer records than counted",
            bytes([1, 0], 1, QUESTION, none),
        ),
        (
            "a compressed name",
            bytes([1, 0], 0, b"\xc0\x0c\0\x01\0\x01", none),
        ),
    ];
    for (case, message) in others {
        assert!(Query::decode(&message).is_none(), "{case}");
    }
    // Queries of other types are understood, but have no address family.
    let service = Query::decode(&bytes([1, 0], 0, b"\x01a\0\0\x21\0\x01", none)).unwrap();
    assert_eq!(service.family(), None);
}

#[test]
fn a_name_that_cannot_be_a_host_name_is_empty() {
    for label in [&b"a b"[..], b"a.b", b"a\\b", b"\xff", b"\0"] {
        let question = [&example::name([label])[..], b"\0\x01\0\x01"].concat();
        let query = Query::decode(&bytes([1, 0], 0, &question, &[])).unwrap();
        assert_eq!(query.name(), "", "{label:?}");
    }
}

#[test]
fn the_response_repeats_the_question_and_the_flags() {
    let query = Query::decode(&bytes([1, 0x10], 1, QUESTION, &opt(1232, 0, true, &[]))).unwrap();
    let reply = query.respond(&records(2), 1232);
    assert_eq!(wire::question(&reply), Some(QUESTION));
    let reply = Message::from_vec(&reply).unwrap();
    let metadata = &reply.metadata;
    assert_eq!(metadata.id, 0x1234);
    assert_eq!(metadata.message_type, MessageType::Response);
    assert_eq!(metadata.response_code, ResponseCode::NoError);
    assert!(metadata.recursion_desired && metadata.recursion_available);
    assert!(metadata.authoritative && metadata.checking_disabled && !metadata.truncation);
    let edns = reply.edns.as_ref().unwrap();
    assert_eq!((edns.max_payload(), edns.version()), (1232, 0));
    assert!(edns.flags().dnssec_ok && edns.options().as_ref().is_empty());
    assert_eq!(
        answers(&reply),
        [
            "WwW.example.com. 30 IN A 10.0.0.0",
            "WwW.example.com. 30 IN A 10.0.0.1"
        ]
    );
    // Without EDNS in the query there is none in the response.
    let plain = Query::decode(&bytes([0, 0], 0, QUESTION, &[])).unwrap();
    let reply = Message::from_vec(&plain.respond(&records(1), 512)).unwrap();
    assert!(reply.edns.is_none() && !reply.metadata.recursion_desired);
}

#[test]
fn the_alias_precedes_the_addresses() {
    let query = Query::decode(&bytes([1, 0], 0, b"\x03www\x02ns\0\0\x1c\0\x01", &[])).unwrap();
    let answer = Answer::Records {
        addresses: vec!["fd00::1".parse().unwrap()],
        canonical: Some("www".to_owned()),
    };
    let reply = Message::from_vec(&query.respond(&answer, 512)).unwrap();
    assert_eq!(
        answers(&reply),
        ["www.ns. 30 IN CNAME www.", "www. 30 IN AAAA fd00::1"]
    );
}

#[test]
fn an_alias_may_share_labels_with_the_search_domain() {
    let question = b"\x01A\x02ns\x02ns\0\0\x01\0\x01";
    let query = Query::decode(&bytes([1, 0], 0, question, &[])).unwrap();
    let answer = Answer::Records {
        addresses: vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()],
        canonical: Some("a.ns".to_owned()),
    };
    let reply = Message::from_vec(&query.respond(&answer, 512)).unwrap();
    assert_eq!(
        answers(&reply),
        [
            "A.ns.ns. 30 IN CNAME A.ns.",
            "A.ns. 30 IN A 10.0.0.1",
            "A.ns. 30 IN A 10.0.0.2"
        ]
    );
}

#[test]
fn records_that_do_not_fit_are_left_out_and_the_response_is_truncated() {
    let query = Query::decode(&bytes([1, 0], 0, QUESTION, &[])).unwrap();
    let fits = query.respond(&records(29), 512);
    assert!(!wire::header(&fits).unwrap().truncation);
    let truncated = query.respond(&records(200), 512);
    assert!(wire::header(&truncated).unwrap().truncation);
    assert!(truncated.len() <= 512);
    assert_eq!(Message::from_vec(&truncated).unwrap().answers.len(), 29);
    // Over a stream all records fit.
    let whole = query.respond(&records(200), 65535);
    assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 200);
    // EDNS stays in the response when addresses are left out.
    let edns = Query::decode(&bytes([1, 0], 1, QUESTION, &opt(512, 0, false, &[]))).unwrap();
    let truncated = edns.respond(&records(200), 512);
    assert!(truncated.len() <= 512);
    assert!(Message::from_vec(&truncated).unwrap().edns.is_some());
    // More addresses than any message can hold.
    let too_many = Answer::Records {
        addresses: vec![[10, 0, 0, 1].into(); 5000],
        canonical: None,
    };
    let full = query.respond(&too_many, 65535);
    assert!(wire::header(&full).unwrap().truncation && full.len() > 65500);
    assert!(Message::from_vec(&full).unwrap().answers.len() > 4000);
}

#[test]
fn an_empty_answer_differs_from_a_server_failure() {
    let query = Query::decode(&bytes([1, 0], 1, QUESTION, &opt(4096, 0, false, &[]))).unwrap();
    let empty = Message::from_vec(&query.respond(&Answer::NoData, 512)).unwrap();
    assert_eq!(empty.metadata.response_code, ResponseCode::NoError);
    assert!(empty.answers.is_empty() && empty.authorities.is_empty());
    let failure = Message::from_vec(&query.server_failure()).unwrap();
    assert_eq!(failure.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(failure.metadata.id, 0x1234);
    assert!(failure.edns.is_some());
}

#[test]
fn answers_to_queries_with_edns_options_are_not_cached() {
    let flags_of = |flags, rest: &[u8]| {
        let additional = u8::from(!rest.is_empty());
        Query::decode(&bytes(flags, additional, QUESTION, rest))
            .unwrap()
            .flags()
    };
    let plain = flags_of([1, 0], &[]).unwrap();
    assert_ne!(Some(plain), flags_of([0, 0], &[]), "recursion");
    assert_ne!(Some(plain), flags_of([1, 0x10], &[]), "checking");
    let edns = flags_of([1, 0], &opt(1232, 0, false, &[])).unwrap();
    assert_ne!(plain, edns);
    assert_eq!(Some(edns), flags_of([1, 0], &opt(4096, 0, false, &[])));
    assert_ne!(Some(edns), flags_of([1, 0], &opt(1232, 0, true, &[])));
    let cookie = b"\0\x0a\0\x08abcdefgh";
    assert_eq!(flags_of([1, 0], &opt(1232, 0, false, cookie)), None);
    let option = EdnsOption::Unknown(65001, vec![1]);
    assert_eq!(
        u16::from(hickory_proto::rr::rdata::opt::EdnsCode::from(&option)),
        65001
    );
    assert_eq!(
        flags_of([1, 0], &opt(1232, 0, false, b"\xfd\xe9\0\x01x")),
        None
    );
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let known = [
        "web", "WEB", "db-0", "db", "default", "svc", "cluster", "local", "example", "com",
    ];
    let label = prop_oneof![
        3 => prop::sample::select(known.to_vec()).prop_map(|label| label.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..64),
    ];
    prop::collection::vec(label, 0..8).prop_map(example::name)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn any_question_is_repeated_unchanged(
        name in name(),
        record_type in prop_oneof![Just(1_u16), Just(28), any::<u16>()],
        class in prop_oneof![4 => Just(1_u16), 1 => any::<u16>()],
        id in any::<[u8; 2]>(),
        flags in any::<[u8; 2]>(),
        edns in prop::option::of((any::<u16>(), any::<bool>())),
    ) {
        let question = [&name[..], &record_type.to_be_bytes(), &class.to_be_bytes()].concat();
        let rest = edns.map_or_else(Vec::new, |(payload, dnssec)| opt(payload, 0, dnssec, &[]));
        let mut message = bytes(flags, u8::from(edns.is_some()), &question, &rest);
        message[..2].copy_from_slice(&id);
        let reply = example::reply(&message).expect("a header is always answered");
        prop_assert_eq!(&reply[..2], &id);
        prop_assert_eq!(wire::question(&reply), wire::question(&message));
        if name.len() <= 255 {
            prop_assert_eq!(wire::question(&reply), Some(&question[..]));
        }
    }

    #[test]
    fn any_bytes_are_handled(message in prop::collection::vec(any::<u8>(), 0..600)) {
        let reply = example::reply(&message);
        prop_assert_eq!(reply.is_some(), message.len() >= 12);
    }

    #[test]
    fn a_query_with_one_wrong_byte_is_handled(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut message = bytes([1, 0], 1, QUESTION, &opt(1232, 0, true, b"\0\x0a\0\x08abcdefgh"));
        *at.get_mut(&mut message) = byte;
        prop_assert!(example::reply(&message).is_some());
    }
}
