//! The order of the policies by example; `model` compares with a naive model.

mod model;

use super::*;
use crate::{Match, PolicyScope, StringMatch};

fn policy(name: &str, action: Action, rules: Vec<Vec<Vec<Match>>>) -> Policy {
    Policy {
        name: name.into(),
        namespace: "default".into(),
        scope: PolicyScope::Namespace,
        action,
        rules,
        dry_run: false,
        unseen: false,
    }
}

fn port(port: u16) -> Match {
    Match {
        destination_ports: vec![port],
        ..Match::default()
    }
}

fn on_trial(policy: Policy) -> Policy {
    Policy {
        dry_run: true,
        ..policy
    }
}

/// Judges a connection of `sa` to port 80 of a workload to which these policies apply.
fn judge(policies: Vec<Policy>, source: Option<&Identity>) -> Authorization {
    let workload = Workload::new("w", "w", "default", "default").unwrap();
    let snapshot = Snapshot::build(Vec::new(), Vec::new(), policies);
    let request = InboundRequest {
        workload: &workload,
        source,
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    authorize(&request, &snapshot)
}

fn verdict(policies: Vec<Policy>) -> (bool, Option<String>) {
    let verdict = judge(policies, None).verdict;
    (
        verdict.is_allow(),
        verdict.by().map(|policy| policy.name.to_string()),
    )
}

#[test]
fn the_order_of_the_policies() {
    use Action::{Allow, Deny};
    let matching = || vec![vec![vec![port(80)]]];
    let other = || vec![vec![vec![port(81)]]];
    let by = |name: &str| Some(name.to_owned());
    for (what, policies, expected) in [
        ("nothing applies", vec![], (true, None)),
        (
            "a DENY matches",
            vec![policy("d", Deny, matching())],
            (false, by("d")),
        ),
        (
            "a DENY does not",
            vec![policy("d", Deny, other())],
            (true, None),
        ),
        (
            "an ALLOW matches",
            vec![policy("a", Allow, matching())],
            (true, by("a")),
        ),
        (
            "an ALLOW does not",
            vec![policy("a", Allow, other())],
            (false, None),
        ),
        (
            "an ALLOW without rules",
            vec![policy("a", Allow, vec![])],
            (false, None),
        ),
        (
            "a DENY without rules",
            vec![policy("d", Deny, vec![])],
            (true, None),
        ),
        (
            "a DENY goes before an ALLOW",
            vec![
                policy("a", Allow, matching()),
                policy("d", Deny, matching()),
            ],
            (false, by("d")),
        ),
        (
            "one ALLOW is enough",
            vec![policy("a", Allow, other()), policy("b", Allow, matching())],
            (true, by("b")),
        ),
    ] {
        assert_eq!(verdict(policies), expected, "{what}");
    }
}

#[test]
fn policies_on_trial_decide_nothing() {
    use Action::{Allow, Deny};
    let matching = || vec![vec![vec![port(80)]]];
    let other = || vec![vec![vec![port(81)]]];
    for (what, policies, expected) in [
        (
            "a DENY on trial",
            vec![on_trial(policy("d", Deny, matching()))],
            (true, None),
        ),
        (
            "an ALLOW on trial does not apply",
            vec![on_trial(policy("a", Allow, other()))],
            (true, None),
        ),
        (
            "an ALLOW on trial does not help",
            vec![
                on_trial(policy("a", Allow, matching())),
                policy("b", Allow, other()),
            ],
            (false, None),
        ),
    ] {
        assert_eq!(verdict(policies), expected, "{what}");
    }
}

#[test]
fn what_empty_rules_clauses_and_matches_say() {
    use Action::Allow;
    let by = |name: &str| Some(name.to_owned());
    for (what, policies, expected) in [
        (
            "an empty rule",
            vec![policy("a", Allow, vec![vec![]])],
            (true, by("a")),
        ),
        (
            "an empty clause",
            vec![policy("a", Allow, vec![vec![vec![]]])],
            (true, by("a")),
        ),
        (
            "an empty match",
            vec![policy("a", Allow, vec![vec![vec![Match::default()]]])],
            (false, None),
        ),
        (
            "an empty match beside another",
            vec![policy(
                "a",
                Allow,
                vec![vec![vec![Match::default(), port(80)]]],
            )],
            (true, by("a")),
        ),
        (
            "clauses are ANDed",
            vec![policy(
                "a",
                Allow,
                vec![vec![vec![port(80)], vec![port(81)]]],
            )],
            (false, None),
        ),
        (
            "matches of a clause are ORed",
            vec![policy("a", Allow, vec![vec![vec![port(80), port(81)]]])],
            (true, by("a")),
        ),
    ] {
        assert_eq!(verdict(policies), expected, "{what}");
    }
}

#[test]
fn mutual_tls_is_demanded_by_denying_who_has_no_principal() {
    let no_principal = Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    };
    let strict = || {
        vec![policy(
            "strict",
            Action::Deny,
            vec![vec![vec![no_principal.clone()]]],
        )]
    };
    let identity = Identity::new("cluster.local", "default", "sa").unwrap();
    assert!(!judge(strict(), None).verdict.is_allow());
    assert!(judge(strict(), Some(&identity)).verdict.is_allow());
}

#[test]
fn principals_are_compared_without_the_scheme() {
    let identity = Identity::new("cluster.local", "default", "sa").unwrap();
    let allow = |text: &str| {
        let principals = vec![StringMatch::Exact(text.into())];
        let rules = vec![vec![vec![Match {
            principals,
            ..Match::default()
        }]]];
        judge(vec![policy("a", Action::Allow, rules)], Some(&identity))
            .verdict
            .is_allow()
    };
    assert!(allow("cluster.local/ns/default/sa/sa"));
    assert!(!allow("spiffe://cluster.local/ns/default/sa/sa"));
}

#[test]
fn policies_on_trial_are_reported() {
    let matching = vec![vec![vec![port(80)]]];
    let other = vec![vec![vec![port(81)]]];
    let judgement = judge(
        vec![
            on_trial(policy("a", Action::Deny, matching.clone())),
            on_trial(policy("b", Action::Allow, other)),
            policy("c", Action::Deny, matching),
        ],
        None,
    );
    let found: Vec<(String, Trial)> = judgement
        .dry_runs
        .iter()
        .map(|run| (run.policy.name.to_string(), run.outcome))
        .collect();
    assert_eq!(
        found,
        [
            ("a".to_owned(), Trial::Matched),
            ("b".to_owned(), Trial::Unmatched)
        ]
    );
    assert_eq!(
        judgement.verdict.by().map(|policy| &*policy.name),
        Some("c")
    );
}

#[test]
fn a_mapped_source_is_its_ipv4_address() {
    let workload = Workload::new("w", "w", "default", "default").unwrap();
    let source_ips = vec!["10.0.0.0/8".parse().unwrap()];
    let rules = vec![vec![vec![Match {
        source_ips,
        ..Match::default()
    }]]];
    let snapshot = Snapshot::build(
        Vec::new(),
        Vec::new(),
        vec![policy("d", Action::Deny, rules)],
    );
    let request = InboundRequest {
        workload: &workload,
        source: None,
        source_ip: "::ffff:10.0.0.1".parse().unwrap(),
        destination: "[::ffff:10.0.0.2]:80".parse().unwrap(),
    };
    assert!(!authorize(&request, &snapshot).verdict.is_allow());
}
