//! Verdicts by example; `model` compares with a naive model.

mod model;

use super::*;
use crate::{HttpMatch, Match, PolicyScope, StringMatch};

fn policy(name: &str, action: Action, rules: Vec<Vec<Vec<Match>>>) -> Policy {
    Policy {
        name: name.into(),
        namespace: "default".into(),
        scope: PolicyScope::Namespace,
        action,
        rules,
        dry_run: false,
        has_unknown_conditions: false,
    }
}

fn port(port: u16) -> Match {
    Match {
        destination_ports: vec![port],
        ..Match::default()
    }
}

fn dry_run(policy: Policy) -> Policy {
    Policy {
        dry_run: true,
        ..policy
    }
}

/// Authorizes a connection to port 80 of a workload to which these policies apply. Also checks that
/// the explanation has the same result.
fn authorized(policies: Vec<Policy>, source: Option<&Identity>) -> Authorization {
    let workload = Workload::new("w", "w", "default", "default").unwrap();
    let snapshot = Snapshot::build(Vec::new(), Vec::new(), policies);
    let request = InboundRequest {
        workload: &workload,
        source,
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
        http: None,
    };
    let result = authorize(&request, &snapshot);
    assert_eq!(explain(&request, &snapshot).result, result);
    result
}

fn verdict(policies: Vec<Policy>) -> (bool, Option<String>) {
    let verdict = authorized(policies, None).verdict;
    (
        verdict.is_allow(),
        verdict.by().map(|policy| policy.name.to_string()),
    )
}

#[test]
fn deny_takes_precedence_and_without_allow_policies_all_is_allowed() {
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
            "a DENY takes precedence over an ALLOW",
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
fn dry_run_policies_do_not_change_the_verdict() {
    use Action::{Allow, Deny};
    let matching = || vec![vec![vec![port(80)]]];
    let other = || vec![vec![vec![port(81)]]];
    for (what, policies, expected) in [
        (
            "a dry-run DENY",
            vec![dry_run(policy("d", Deny, matching()))],
            (true, None),
        ),
        (
            "a dry-run ALLOW does not apply",
            vec![dry_run(policy("a", Allow, other()))],
            (true, None),
        ),
        (
            "a dry-run ALLOW does not allow",
            vec![
                dry_run(policy("a", Allow, matching())),
                policy("b", Allow, other()),
            ],
            (false, None),
        ),
    ] {
        assert_eq!(verdict(policies), expected, "{what}");
    }
}

#[test]
fn empty_rules_clauses_and_matches() {
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
fn a_deny_of_clients_without_a_principal_demands_mutual_tls() {
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
    assert!(!authorized(strict(), None).verdict.is_allow());
    assert!(authorized(strict(), Some(&identity)).verdict.is_allow());
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
        authorized(vec![policy("a", Action::Allow, rules)], Some(&identity))
            .verdict
            .is_allow()
    };
    assert!(allow("cluster.local/ns/default/sa/sa"));
    assert!(!allow("spiffe://cluster.local/ns/default/sa/sa"));
}

#[test]
fn dry_run_policies_are_reported() {
    let matching = vec![vec![vec![port(80)]]];
    let other = vec![vec![vec![port(81)]]];
    let result = authorized(
        vec![
            dry_run(policy("a", Action::Deny, matching.clone())),
            dry_run(policy("b", Action::Allow, other)),
            policy("c", Action::Deny, matching),
        ],
        None,
    );
    let found: Vec<(String, DryRunOutcome)> = result
        .dry_runs
        .iter()
        .map(|run| (run.policy.name.to_string(), run.outcome))
        .collect();
    assert_eq!(
        found,
        [
            ("a".to_owned(), DryRunOutcome::Matched),
            ("b".to_owned(), DryRunOutcome::Unmatched)
        ]
    );
    assert_eq!(result.verdict.by().map(|policy| &*policy.name), Some("c"));
}

#[test]
fn an_explanation_names_each_policy_and_the_rule_that_matches() {
    use Evaluation::{Matched, Skipped, Unmatched};
    let rules = |ports: &[u16]| ports.iter().map(|p| vec![vec![port(*p)]]).collect();
    let workload = Workload::new("w", "w", "default", "default").unwrap();
    let policies = vec![
        dry_run(policy("a", Action::Deny, rules(&[80]))),
        policy("b", Action::Deny, rules(&[81])),
        policy("c", Action::Allow, rules(&[81, 80])),
        policy("d", Action::Allow, rules(&[80])),
    ];
    let snapshot = Snapshot::build(Vec::new(), Vec::new(), policies);
    let request = InboundRequest {
        workload: &workload,
        source: None,
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
        http: None,
    };
    let explained = explain(&request, &snapshot);
    let steps = explained.policies.iter();
    let steps: Vec<_> = steps
        .map(|step| (&*step.policy.name, step.evaluation))
        .collect();
    assert_eq!(
        steps,
        [
            ("a", Matched { rule: 0 }),
            ("b", Unmatched),
            ("c", Matched { rule: 1 }),
            ("d", Skipped)
        ]
    );
    assert_eq!(explained.result, authorize(&request, &snapshot));
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
        http: None,
    };
    assert!(!authorize(&request, &snapshot).verdict.is_allow());
}

/// A match of the requests with one method, which have a path of `/admin` or below.
fn http(method: &str) -> Match {
    let conditions = HttpMatch {
        methods: vec![StringMatch::Exact(method.into())],
        paths: vec![StringMatch::Prefix("/admin".into())],
        not_hosts: vec![StringMatch::Suffix(".test".into())],
        ..HttpMatch::default()
    };
    Match {
        http: Some(Box::new(conditions)),
        ..Match::default()
    }
}

#[test]
fn conditions_on_requests_are_evaluated_where_requests_are_known() {
    let request = |method, host, path| HttpAttributes { method, host, path };
    let context = |http| PolicyContext {
        source: None,
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
        http,
    };
    for (http_request, expected) in [
        (request("GET", "shop.example", "/admin/x"), true),
        (request("POST", "shop.example", "/admin/x"), false),
        (request("GET", "shop.example", "/public"), false),
        (request("GET", "shop.test", "/admin"), false),
    ] {
        for action in [Action::Allow, Action::Deny] {
            let policy = policy("p", action, vec![vec![vec![http("GET")]]]);
            let found = policy.matches(&context(Some(http_request)));
            assert_eq!(found, expected, "{action:?} {http_request:?}");
        }
    }
    // A node proxy does not see requests: the policy is enforced more strictly.
    let without_request = |action| {
        let policy = policy("p", action, vec![vec![vec![http("GET")]]]);
        policy.matches(&context(None))
    };
    assert!(!without_request(Action::Allow));
    assert!(without_request(Action::Deny));
    // The conditions on the connection still apply.
    let other_port = Match {
        http: http("GET").http,
        ..port(81)
    };
    let policy = policy("p", Action::Deny, vec![vec![vec![other_port]]]);
    assert!(!policy.matches(&context(None)));
}

#[test]
fn a_request_is_authorized_and_explained() {
    let workload = Workload::new("w", "w", "default", "default").unwrap();
    // Requests with GET below /admin, or any connection to port 81.
    let rules = vec![vec![vec![http("GET"), port(81)]]];
    let policies = vec![policy("p", Action::Allow, rules)];
    let snapshot = Snapshot::build(Vec::new(), Vec::new(), policies);
    for (method, destination, expected) in [
        ("GET", "10.0.0.2:80", true),
        ("POST", "10.0.0.2:80", false),
        ("POST", "10.0.0.2:81", true),
    ] {
        let request = InboundRequest {
            workload: &workload,
            source: None,
            source_ip: "10.0.0.1".parse().unwrap(),
            destination: destination.parse().unwrap(),
            http: Some(HttpAttributes {
                method,
                host: "shop.example",
                path: "/admin",
            }),
        };
        let result = authorize(&request, &snapshot);
        assert_eq!(
            result.verdict.is_allow(),
            expected,
            "{method} {destination}"
        );
        assert_eq!(explain(&request, &snapshot).result, result);
    }
}
