//! Policies: every field, and what is refused.

use proptest::prelude::*;
use prost::Message as _;

use super::text;
use crate::ads::decode::{DecodedPolicy, decode_authorization};
use api::istio::security as wire;
use api::istio::security::string_match::MatchType;
use mesh::{Action, Interner, Match, Policy, PolicyScope, ServiceAccountMatch, StringMatch};

fn read(policy: &wire::Authorization) -> Result<DecodedPolicy, String> {
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
        // A match without a kind matches nothing, which is not for us to change.
        rules: vec![vec![vec![kinds, Match::default()], vec![]], vec![]],
        dry_run: true,
        has_unknown_conditions: false,
    };
    let decoded = read(&wire).unwrap();
    assert_eq!(decoded.policy, expected);
    assert_eq!(decoded.doubts, Vec::<String>::new());
}

#[test]
fn what_is_left_out_of_a_policy_has_the_apis_default() {
    let wire = wire::Authorization {
        namespace: String::new(),
        ..bare()
    };
    let policy = read(&wire).unwrap().policy;
    assert_eq!(policy.key(), "default/p");
    assert_eq!(
        (policy.scope, policy.action, policy.dry_run),
        (PolicyScope::Global, Action::Allow, false)
    );
    let wire = wire::Authorization { scope: 1, ..bare() };
    assert_eq!(read(&wire).unwrap().policy.scope, PolicyScope::Namespace);
}

#[test]
fn what_cannot_be_enforced_as_it_is_meant_is_refused() {
    for (wire, complaint) in [
        (
            wire::Authorization {
                action: 7,
                ..bare()
            },
            "policy ns/p: action: 7 is not known here",
        ),
        (
            wire::Authorization {
                scope: -1,
                ..bare()
            },
            "policy ns/p: scope: -1 is not known here",
        ),
        (
            wire::Authorization {
                name: String::new(),
                ..bare()
            },
            "policy ns/: name: \"\" is not a name of a policy",
        ),
        (
            wire::Authorization {
                namespace: text("a/b"),
                ..bare()
            },
            "policy a/b/p: namespace: \"a/b\" is not a namespace of a policy",
        ),
    ] {
        assert_eq!(read(&wire).expect_err(complaint), complaint);
    }
}

#[test]
fn a_value_that_cannot_be_read_refuses_the_policy_and_is_named() {
    for (kinds, complaint) in [
        (
            wire::Match {
                source_ips: vec![range(&[1, 2, 3, 4], 0), range(&[1, 2, 3, 4, 5], 8)],
                ..wire::Match::default()
            },
            "source_ips[1]: 5 bytes are no IP address",
        ),
        (
            wire::Match {
                not_destination_ips: vec![range(&[1, 2, 3, 4], 33)],
                ..wire::Match::default()
            },
            "not_destination_ips[0]: 33 is no prefix length of 1.2.3.4",
        ),
        (
            wire::Match {
                destination_ports: vec![65536],
                ..wire::Match::default()
            },
            "destination_ports[0]: 65536 is no port, 65535 is the last",
        ),
        (
            wire::Match {
                service_accounts: vec![account("", "x")],
                ..wire::Match::default()
            },
            "service_accounts[0]: a namespace and a service account are needed",
        ),
    ] {
        let wire = wire::Authorization {
            rules: one_match(kinds),
            ..bare()
        };
        let path = "policy ns/p: rules[0].clauses[0].matches[0]";
        let error = read(&wire).expect_err(complaint);
        assert_eq!(error, format!("{path}.{complaint}"));
    }
}

proptest! {
    #[test]
    fn a_spoiled_policy_is_read_or_refused(
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
