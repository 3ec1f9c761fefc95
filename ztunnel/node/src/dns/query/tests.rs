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

const ASKED: &[u8] = b"\x03WwW\x07example\x03com\0\0\x01\0\x01";

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
fn told(reply: &Message) -> Vec<String> {
    reply.answers.iter().map(ToString::to_string).collect()
}

#[test]
fn a_plain_query_is_understood() {
    let query = Query::of(&bytes([1, 0], 0, ASKED, &[])).unwrap();
    assert_eq!(query.name(), "www.example.com");
    assert_eq!(query.family(), Some(Family::V4));
    assert_eq!(query.payload(), 512);
    assert_eq!(query.raw(), ASKED);
    let query = Query::of(&bytes([1, 0], 1, ASKED, &opt(1232, 0, true, &[]))).unwrap();
    assert_eq!(query.payload(), 1232);
    let small = Query::of(&bytes([1, 0], 1, ASKED, &opt(100, 0, false, &[]))).unwrap();
    assert_eq!(small.payload(), 512);
}

#[test]
fn what_is_not_plain_is_somebody_elses() {
    let (none, other_class): (&[u8], &[u8]) = (&[], b"\x01a\0\0\x01\0\x03");
    let twice = [opt(512, 0, false, none), opt(512, 0, false, none)].concat();
    let strange = [
        ("a response", bytes([0x81, 0], 0, ASKED, none)),
        ("an update", bytes([0x29, 0], 0, ASKED, none)),
        ("a truncated one", bytes([3, 0], 0, ASKED, none)),
        ("another class", bytes([1, 0], 0, other_class, none)),
        (
            "another EDNS",
            bytes([1, 0], 1, ASKED, &opt(512, 1, false, none)),
        ),
        ("EDNS twice", bytes([1, 0], 2, ASKED, &twice)),
        (
            "an address beside it",
            bytes([1, 0], 1, ASKED, b"\0\0\x01\0\x01\0\0\0\0\0\x04abcd"),
        ),
        ("less than it says", bytes([1, 0], 1, ASKED, none)),
        (
            "a compressed name",
            bytes([1, 0], 0, b"\xc0\x0c\0\x01\0\x01", none),
        ),
    ];
    for (what, message) in strange {
        assert!(Query::of(&message).is_none(), "{what}");
    }
    // Queries of other types are understood, but have no address family.
    let service = Query::of(&bytes([1, 0], 0, b"\x01a\0\0\x21\0\x01", none)).unwrap();
    assert_eq!(service.family(), None);
}

#[test]
fn what_can_be_no_hosts_name_is_none() {
    for label in [&b"a b"[..], b"a.b", b"a\\b", b"\xff", b"\0"] {
        let question = [&example::name([label])[..], b"\0\x01\0\x01"].concat();
        let query = Query::of(&bytes([1, 0], 0, &question, &[])).unwrap();
        assert_eq!(query.name(), "", "{label:?}");
    }
}

#[test]
fn the_answer_bears_the_question_as_it_was_asked() {
    let query = Query::of(&bytes([1, 0x10], 1, ASKED, &opt(1232, 0, true, &[]))).unwrap();
    let reply = query.respond(&records(2), 1232);
    assert_eq!(wire::question(&reply), Some(ASKED));
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
        told(&reply),
        [
            "WwW.example.com. 30 IN A 10.0.0.0",
            "WwW.example.com. 30 IN A 10.0.0.1"
        ]
    );
    // Without EDNS in the query there is none in the response.
    let plain = Query::of(&bytes([0, 0], 0, ASKED, &[])).unwrap();
    let reply = Message::from_vec(&plain.respond(&records(1), 512)).unwrap();
    assert!(reply.edns.is_none() && !reply.metadata.recursion_desired);
}

#[test]
fn an_alias_comes_before_the_addresses() {
    let query = Query::of(&bytes([1, 0], 0, b"\x03www\x02ns\0\0\x1c\0\x01", &[])).unwrap();
    let answer = Answer::Records {
        addresses: vec!["fd00::1".parse().unwrap()],
        canonical: Some("www".to_owned()),
    };
    let reply = Message::from_vec(&query.respond(&answer, 512)).unwrap();
    assert_eq!(
        told(&reply),
        ["www.ns. 30 IN CNAME www.", "www. 30 IN AAAA fd00::1"]
    );
}

#[test]
fn what_does_not_fit_is_cut_and_says_so() {
    let query = Query::of(&bytes([1, 0], 0, ASKED, &[])).unwrap();
    let fits = query.respond(&records(29), 512);
    assert!(!Header::of(&fits).unwrap().is_truncated());
    let cut = query.respond(&records(200), 512);
    assert!(Header::of(&cut).unwrap().is_truncated());
    assert!(cut.len() <= 512);
    assert_eq!(Message::from_vec(&cut).unwrap().answers.len(), 29);
    // Over a stream all records fit.
    let whole = query.respond(&records(200), 65535);
    assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 200);
    // EDNS stays in the response when addresses are left out.
    let edns = Query::of(&bytes([1, 0], 1, ASKED, &opt(512, 0, false, &[]))).unwrap();
    let cut = edns.respond(&records(200), 512);
    assert!(cut.len() <= 512);
    assert!(Message::from_vec(&cut).unwrap().edns.is_some());
    // More addresses than any message can hold.
    let most = Answer::Records {
        addresses: vec![[10, 0, 0, 1].into(); 5000],
        canonical: None,
    };
    let full = query.respond(&most, 65535);
    assert!(Header::of(&full).unwrap().is_truncated() && full.len() > 65500);
    assert!(Message::from_vec(&full).unwrap().answers.len() > 4000);
}

#[test]
fn nothing_and_failure_are_told_apart() {
    let query = Query::of(&bytes([1, 0], 1, ASKED, &opt(4096, 0, false, &[]))).unwrap();
    let nothing = Message::from_vec(&query.respond(&Answer::NoData, 512)).unwrap();
    assert_eq!(nothing.metadata.response_code, ResponseCode::NoError);
    assert!(nothing.answers.is_empty() && nothing.authorities.is_empty());
    let failure = Message::from_vec(&query.fail()).unwrap();
    assert_eq!(failure.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(failure.metadata.id, 0x1234);
    assert!(failure.edns.is_some());
}

#[test]
fn answers_to_options_are_kept_for_nobody() {
    let flavour = |flags, rest: &[u8]| {
        let additional = u8::from(!rest.is_empty());
        Query::of(&bytes(flags, additional, ASKED, rest))
            .unwrap()
            .flavour()
    };
    let plain = flavour([1, 0], &[]).unwrap();
    assert_ne!(Some(plain), flavour([0, 0], &[]), "recursion");
    assert_ne!(Some(plain), flavour([1, 0x10], &[]), "checking");
    let edns = flavour([1, 0], &opt(1232, 0, false, &[])).unwrap();
    assert_ne!(plain, edns);
    assert_eq!(Some(edns), flavour([1, 0], &opt(4096, 0, false, &[])));
    assert_ne!(Some(edns), flavour([1, 0], &opt(1232, 0, true, &[])));
    let cookie = b"\0\x0a\0\x08abcdefgh";
    assert_eq!(flavour([1, 0], &opt(1232, 0, false, cookie)), None);
    let option = EdnsOption::Unknown(65001, vec![1]);
    assert_eq!(
        u16::from(hickory_proto::rr::rdata::opt::EdnsCode::from(&option)),
        65001
    );
    assert_eq!(
        flavour([1, 0], &opt(1232, 0, false, b"\xfd\xe9\0\x01x")),
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
    fn any_question_comes_back_as_it_was(
        name in name(),
        kind in prop_oneof![Just(1_u16), Just(28), any::<u16>()],
        class in prop_oneof![4 => Just(1_u16), 1 => any::<u16>()],
        id in any::<[u8; 2]>(),
        flags in any::<[u8; 2]>(),
        edns in prop::option::of((any::<u16>(), any::<bool>())),
    ) {
        let question = [&name[..], &kind.to_be_bytes(), &class.to_be_bytes()].concat();
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
    fn no_byte_string_is_too_strange(message in prop::collection::vec(any::<u8>(), 0..600)) {
        let reply = example::reply(&message);
        prop_assert_eq!(reply.is_some(), message.len() >= 12);
    }

    #[test]
    fn neither_is_a_query_with_a_wrong_byte(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut message = bytes([1, 0], 1, ASKED, &opt(1232, 0, true, b"\0\x0a\0\x08abcdefgh"));
        *at.get_mut(&mut message) = byte;
        prop_assert!(example::reply(&message).is_some());
    }
}
