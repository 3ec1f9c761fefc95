//! Conditions that came after this was written make a policy stricter, never looser.

use prost::Message as _;

use super::policies::{bare, one_match};
use crate::ads::decode::{DecodedPolicy, decode_authorization};
use api::istio::security as wire;
use mesh::{Interner, Match, Rule};

const ALLOW: i32 = 0;
const DENY: i32 = 1;
/// A field 30 of each wire type: number, eight bytes, text, group with a field in it, four bytes.
const LATER: [&[u8]; 5] = [
    &[0xf0, 0x01, 0x05],
    &[0xf1, 0x01, 1, 2, 3, 4, 5, 6, 7, 8],
    &[0xf2, 0x01, 0x02, 0xaa, 0xbb],
    &[0xf3, 0x01, 0x08, 0x01, 0x0b, 0x0c, 0xf4, 0x01],
    &[0xf5, 0x01, 1, 2, 3, 4],
];

/// Wraps encoded content as field `number` of the message around it.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
    bytes.extend_from_slice(content);
    bytes
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// A policy with these encoded rules.
fn read(action: i32, rules: &[Vec<u8>]) -> DecodedPolicy {
    let mut bytes = wire::Authorization { action, ..bare() }.encode_to_vec();
    for rule in rules {
        bytes.extend(field(5, rule));
    }
    decode_authorization(&bytes, &mut Interner::new()).unwrap()
}

fn on_port(port: u32) -> Vec<u8> {
    let kinds = wire::Match {
        destination_ports: vec![port],
        ..wire::Match::default()
    };
    kinds.encode_to_vec()
}

fn known(port: u16) -> Match {
    Match {
        destination_ports: vec![port],
        ..Match::default()
    }
}

fn rules(action: i32, rule: &[u8]) -> Vec<Rule> {
    let decoded = read(action, &[rule.to_vec()]);
    assert!(!decoded.doubts.is_empty());
    assert!(decoded.policy.has_unknown_conditions);
    decoded.policy.rules
}

#[test]
fn a_match_with_a_later_kind_never_allows_and_denies_by_the_rest() {
    for later in LATER {
        let spoiled = join(&[&on_port(80), later]);
        let alone = field(1, &field(2, &spoiled));
        assert_eq!(rules(ALLOW, &alone), Vec::<Rule>::new());
        assert_eq!(rules(DENY, &alone), [vec![vec![known(80)]]]);
        let one_of_two = field(1, &join(&[&field(2, &spoiled), &field(2, &on_port(81))]));
        assert_eq!(rules(ALLOW, &one_of_two), [vec![vec![known(81)]]]);
        assert_eq!(rules(DENY, &one_of_two), [vec![vec![known(80), known(81)]]]);
    }
}

#[test]
fn a_match_of_nothing_but_later_kinds_denies_all() {
    for later in LATER {
        let rule = field(1, &field(2, later));
        assert_eq!(rules(ALLOW, &rule), Vec::<Rule>::new());
        assert_eq!(rules(DENY, &rule), [vec![vec![]]]);
    }
}

#[test]
fn a_text_that_is_compared_in_a_later_way_is_a_condition_that_is_not_known() {
    let exact = wire::StringMatch {
        match_type: Some(wire::string_match::MatchType::Exact("a".to_owned())),
    };
    let kinds = wire::Match {
        destination_ports: vec![80],
        not_principals: vec![exact, wire::StringMatch::default()],
        ..wire::Match::default()
    };
    let rule = field(1, &field(2, &kinds.encode_to_vec()));
    assert_eq!(rules(ALLOW, &rule), Vec::<Rule>::new());
    assert_eq!(rules(DENY, &rule), [vec![vec![known(80)]]]);
}

#[test]
fn an_extension_is_a_condition_that_is_not_known() {
    let policy = wire::Authorization {
        action: DENY,
        rules: one_match(wire::Match {
            extensions: vec![wire::Extension::default()],
            ..wire::Match::default()
        }),
        ..bare()
    };
    let decoded = decode_authorization(&policy.encode_to_vec(), &mut Interner::new()).unwrap();
    assert_eq!(decoded.policy.rules, [vec![vec![]]]);
    assert_eq!(
        decoded.doubts,
        [
            "rules[0].clauses[0].matches[0]: a condition is not known here: it denies without asking for it"
        ]
    );
}

#[test]
fn a_clause_with_more_than_matches_allows_less_and_denies_more() {
    for later in LATER {
        let clause = join(&[&field(2, &on_port(80)), later]);
        let rule = field(1, &clause);
        assert_eq!(rules(ALLOW, &rule), Vec::<Rule>::new());
        assert_eq!(rules(DENY, &rule), [vec![vec![]]]);
        // An empty clause would match everything.
        assert_eq!(rules(ALLOW, &field(1, later)), Vec::<Rule>::new());
    }
}

#[test]
fn a_rule_with_more_than_clauses_never_allows() {
    for later in LATER {
        let rule = join(&[later, &field(1, &field(2, &on_port(80)))]);
        assert_eq!(rules(ALLOW, &rule), Vec::<Rule>::new());
        assert_eq!(rules(DENY, &rule), [vec![vec![known(80)]]]);
        assert_eq!(rules(ALLOW, later), Vec::<Rule>::new());
    }
}

#[test]
fn the_other_rules_are_not_touched() {
    let good = field(1, &field(2, &on_port(80)));
    let spoiled = field(1, &field(2, LATER[0]));
    let decoded = read(ALLOW, &[good.clone(), spoiled, good]);
    assert_eq!(
        decoded.policy.rules,
        [vec![vec![known(80)]], vec![vec![known(80)]]]
    );
    assert_eq!(decoded.doubts.len(), 1);
    assert!(
        decoded.doubts[0].starts_with("rules[1]."),
        "{:?}",
        decoded.doubts
    );
}
