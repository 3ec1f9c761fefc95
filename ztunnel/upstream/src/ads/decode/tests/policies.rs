//! Decoding of every field of a policy and of invalid values.

use proptest::prelude::*;
use prost::Message as _;

use super::text;
use crate::ads::decode::{DecodedPolicy, decode_authorization};
use api::istio::security as wire;
use api::istio::security::string_match::MatchType;
use mesh::{Action, Interner, Match, Policy, PolicyScope, ServiceAccountMatch, StringMatch};

fn decode(policy: &wire::Authorization) -> Result<DecodedPolicy, String> {
    decode_authorization(&policy.encode_to_vec(), &mut Interner::new())
        .map_err(|error| error.to_string())
}

pub(super) fn bare() -> wire::Authorization {
    wire::Authorization {
        name: text("p"),
        namespace: text("ns"),
        ..wire::Authorization::default()
    }
}

pub(super) fn one_match(kinds: wire::Match) -> Vec<wire::Rule> {
    vec![wire::Rule {
        clauses: vec![wire::Clause {
            matches: vec![kinds],
        }],
    }]
}

fn string(kind: MatchType) -> wire::StringMatch {
    wire::StringMatch {
        match_type: Some(kind),
    }
}

fn range(address: &[u8], length: u32) -> wire::Address {
    wire::Address {
        address: address.to_vec().into(),
        length,
    }
}

fn account(namespace: &str, service_account: &str) -> wire::ServiceAccountMatch {
    wire::ServiceAccountMatch {
        namespace: text(namespace),
        service_account: text(service_account),
    }
}

fn full_match() -> wire::Match {
    wire::Match {
        namespaces: vec![string(MatchType::Exact(text("a")))],
        not_namespaces: vec![string(MatchType::Prefix(text("b")))],
        principals: vec![
            string(MatchType::Exact(text("spiffe://td/ns/a/sa/b"))),
            string(MatchType::Suffix(text("/sa/c"))),
        ],
        not_principals: vec![string(MatchType::Presence(()))],
        source_ips: vec![range(&[10, 1, 2, 3], 8)],
        not_source_ips: vec![range(&[10, 1, 2, 3], 32)],
        destination_ips: vec![range(&super::MAPPED, 128)],
        not_destination_ips: vec![range(&super::SIX, 0)],
        destination_ports: vec![80, 443],
        not_destination_ports: vec![65535, 0],
        service_accounts: vec![account("a", "b")],
        not_service_accounts: vec![account("c", "d")],
        extensions: Vec::new(),
    }
}

#[test]
fn every_field_of_a_policy_arrives() {
    let wire = wire::Authorization {
        scope: 2,
        action: 1,
        rules: vec![
            wire::Rule {
                clauses: vec![
                    wire::Clause {
                        matches: vec![full_match(), wire::Match::default()],
                    },
                    wire::Clause::default(),
                ],
            },
            wire::Rule::default(),
        ],
        dry_run: true,
        ..bare()
    };
    let account = |namespace: &str, service_account: &str| ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: service_account.into(),
    };
    let net = |text: &str| vec![text.parse().unwrap()];
    let kinds = Match {
        namespaces: vec![StringMatch::Exact("a".into())],
        not_namespaces: vec![StringMatch::Prefix("b".into())],
        principals: vec![
            StringMatch::Exact("td/ns/a/sa/b".into()),
            StringMatch::Suffix("/sa/c".into()),
        ],
        not_principals: vec![StringMatch::Presence],
        service_accounts: vec![account("a", "b")],
        not_service_accounts: vec![account("c", "d")],
        source_ips: net("10.0.0.0/8"),
        not_source_ips: net("10.1.2.3/32"),
        destination_ips: net("10.0.0.7/32"),
        not_destination_ips: net("::/0"),
        destination_ports: vec![80, 443],
        not_destination_ports: vec![65535, 0],
        http: None,
    };
    let expected = Policy {
        name: "p".into(),
        namespace: "ns".into(),
        scope: PolicyScope::WorkloadSelector,
        action: Action::Deny,
        // A match without conditions is decoded as such; `authorize` decides that it matches nothing.
        rules: vec![vec![vec![kinds, Match::default()], vec![]], vec![]],
        dry_run: true,
        has_unknown_conditions: false,
    };
    let decoded = decode(&wire).unwrap();
    assert_eq!(decoded.policy, expected);
    assert_eq!(decoded.warnings, Vec::<String>::new());
}

#[test]
fn missing_fields_of_a_policy_have_the_defaults_of_the_api() {
    let wire = wire::Authorization {
        namespace: String::new(),
        ..bare()
    };
    let policy = decode(&wire).unwrap().policy;
    assert_eq!(policy.key(), "default/p");
    assert_eq!(
        (policy.scope, policy.action, policy.dry_run),
        (PolicyScope::Global, Action::Allow, false)
    );
    let wire = wire::Authorization { scope: 1, ..bare() };
    assert_eq!(decode(&wire).unwrap().policy.scope, PolicyScope::Namespace);
}

#[test]
fn unknown_actions_and_scopes_and_invalid_names_are_refused() {
    for (wire, expected) in [
        (
            wire::Authorization {
                action: 7,
                ..bare()
            },
            "policy ns/p: action: 7 is an unknown value",
        ),
        (
            wire::Authorization {
                scope: -1,
                ..bare()
            },
            "policy ns/p: scope: -1 is an unknown value",
        ),
        (
            wire::Authorization {
                name: String::new(),
                ..bare()
            },
            "policy ns/: name: \"\" is not a valid name of a policy",
        ),
        (
            wire::Authorization {
                namespace: text("a/b"),
                ..bare()
            },
            "policy a/b/p: namespace: \"a/b\" is not a valid namespace of a policy",
        ),
    ] {
        assert_eq!(decode(&wire).expect_err(expected), expected);
    }
}

#[test]
fn an_invalid_value_refuses_the_policy_with_the_field_in_the_error() {
    for (kinds, expected) in [
        (
            wire::Match {
                source_ips: vec![range(&[1, 2, 3, 4], 0), range(&[1, 2, 3, 4, 5], 8)],
                ..wire::Match::default()
            },
            "source_ips[1]: 5 bytes are not an IP address, expected 4 or 16",
        ),
        (
            wire::Match {
                not_destination_ips: vec![range(&[1, 2, 3, 4], 33)],
                ..wire::Match::default()
            },
            "not_destination_ips[0]: 33 is not a prefix length of 1.2.3.4",
        ),
        (
            wire::Match {
                destination_ports: vec![65536],
                ..wire::Match::default()
            },
            "destination_ports[0]: 65536 is not a port, expected at most 65535",
        ),
        (
            wire::Match {
                service_accounts: vec![account("", "x")],
                ..wire::Match::default()
            },
            "service_accounts[0]: expected a namespace and a service account",
        ),
    ] {
        let wire = wire::Authorization {
            rules: one_match(kinds),
            ..bare()
        };
        let path = "policy ns/p: rules[0].clauses[0].matches[0]";
        let error = decode(&wire).expect_err(expected);
        assert_eq!(error, format!("{path}.{expected}"));
    }
}

proptest! {
    #[test]
    fn a_corrupted_policy_does_not_panic(
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<proptest::sample::Index>(),
    ) {
        let policy = wire::Authorization { rules: one_match(full_match()), ..bare() };
        let mut bytes = policy.encode_to_vec();
        let position = at.index(bytes.len());
        bytes[position] = byte;
        bytes.truncate(cut.index(bytes.len() + 1));
        drop(decode_authorization(&bytes, &mut Interner::new()));
    }
}
