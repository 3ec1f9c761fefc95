//! Unknown conditions make a policy stricter, never less strict.

use prost::Message as _;

use super::policies::{bare, one_match};
use crate::ads::decode::{DecodedPolicy, decode_authorization};
use api::istio::security as wire;
use mesh::{Interner, Match, Rule};

const ALLOW: i32 = 0;
const DENY: i32 = 1;
/// An unknown field, number 30, of each wire type: varint, eight bytes, length-delimited, a group with
/// one field, four bytes.
const UNKNOWN: [&[u8]; 5] = [
    &[0xf0, 0x01, 0x05],
    &[0xf1, 0x01, 1, 2, 3, 4, 5, 6, 7, 8],
    &[0xf2, 0x01, 0x02, 0xaa, 0xbb],
    &[0xf3, 0x01, 0x08, 0x01, 0x0b, 0x0c, 0xf4, 0x01],
    &[0xf5, 0x01, 1, 2, 3, 4],
];

/// Encodes content as field `number` of the enclosing message.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
    bytes.extend_from_slice(content);
    bytes
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Decodes a policy with these encoded rules.
fn decode(action: i32, rules: &[Vec<u8>]) -> DecodedPolicy {
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

fn port_match(port: u16) -> Match {
    Match {
        destination_ports: vec![port],
        ..Match::default()
    }
}

fn rules(action: i32, rule: &[u8]) -> Vec<Rule> {
    let decoded = decode(action, &[rule.to_vec()]);
    assert!(!decoded.warnings.is_empty());
    assert!(decoded.policy.has_unknown_conditions);
    decoded.policy.rules
}

#[test]
fn a_match_with_an_unknown_condition_never_allows_and_denies_by_its_known_conditions() {
    for unknown in UNKNOWN {
        let changed = join(&[&on_port(80), unknown]);
        let alone = field(1, &field(2, &changed));
        assert_eq!(rules(ALLOW, &alone), Vec::<Rule>::new());
        assert_eq!(rules(DENY, &alone), [vec![vec![port_match(80)]]]);
        let one_of_two = field(1, &join(&[&field(2, &changed), &field(2, &on_port(81))]));
        assert_eq!(rules(ALLOW, &one_of_two), [vec![vec![port_match(81)]]]);
        assert_eq!(
            rules(DENY, &one_of_two),
            [vec![vec![port_match(80), port_match(81)]]]
        );
    }
}

#[test]
fn a_match_of_unknown_conditions_only_denies_every_connection() {
    for unknown in UNKNOWN {
        let rule = field(1, &field(2, unknown));
        assert_eq!(rules(ALLOW, &rule), Vec::<Rule>::new());
        assert_eq!(rules(DENY, &rule), [vec![vec![]]]);
    }
}

#[test]
fn a_text_comparison_of_an_unknown_kind_is_an_unknown_condition() {
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
    assert_eq!(rules(DENY, &rule), [vec![vec![port_match(80)]]]);
}

#[test]
fn an_extension_is_an_unknown_condition() {
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
        decoded.warnings,
        [
            "rules[0].clauses[0].matches[0] contains an unknown condition: a DENY policy is enforced without it"
        ]
    );
}

#[test]
fn a_clause_with_an_unknown_field_never_allows_and_always_denies() {
    for unknown in UNKNOWN {
        let clause = join(&[&field(2, &on_port(80)), unknown]);
        let rule = field(1, &clause);
        assert_eq!(rules(ALLOW, &rule), Vec::<Rule>::new());
        assert_eq!(rules(DENY, &rule), [vec![vec![]]]);
        // An empty clause would match everything.
        assert_eq!(rules(ALLOW, &field(1, unknown)), Vec::<Rule>::new());
    }
}

#[test]
fn a_rule_with_an_unknown_field_never_allows_and_denies_by_its_clauses() {
    for unknown in UNKNOWN {
        let rule = join(&[unknown, &field(1, &field(2, &on_port(80)))]);
        assert_eq!(rules(ALLOW, &rule), Vec::<Rule>::new());
        assert_eq!(rules(DENY, &rule), [vec![vec![port_match(80)]]]);
        assert_eq!(rules(ALLOW, unknown), Vec::<Rule>::new());
    }
}

#[test]
fn rules_without_unknown_fields_are_unchanged() {
    let good = field(1, &field(2, &on_port(80)));
    let changed = field(1, &field(2, UNKNOWN[0]));
    let decoded = decode(ALLOW, &[good.clone(), changed, good]);
    assert_eq!(
        decoded.policy.rules,
        [vec![vec![port_match(80)]], vec![vec![port_match(80)]]]
    );
    assert_eq!(decoded.warnings.len(), 1);
    assert!(
        decoded.warnings[0].starts_with("rules[1]."),
        "{:?}",
        decoded.warnings
    );
}
