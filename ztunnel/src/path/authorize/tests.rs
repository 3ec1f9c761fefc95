//! The order of the policies by example, and what a policy matches against a naive model.

use proptest::prelude::*;

use super::*;
use crate::mesh::{Match, PolicyScope, ServiceAccountMatch, StringMatch};

fn policy(name: &str, action: Action, rules: Vec<Vec<Vec<Match>>>) -> Policy {
    Policy {
        name: name.into(),
        namespace: "default".into(),
        scope: PolicyScope::Namespace,
        action,
        rules,
        dry_run: false,
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
fn judge(policies: Vec<Policy>, source: Option<&Identity>) -> Judgement {
    let workload = Workload::new("w", "w", "default", "default").unwrap();
    let snapshot = Snapshot::build(Vec::new(), Vec::new(), policies);
    let arrival = Arrival {
        workload: &workload,
        source,
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    authorize(&arrival, &snapshot)
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
    let arrival = Arrival {
        workload: &workload,
        source: None,
        source_ip: "::ffff:10.0.0.1".parse().unwrap(),
        destination: "[::ffff:10.0.0.2]:80".parse().unwrap(),
    };
    assert!(!authorize(&arrival, &snapshot).verdict.is_allow());
}

/// What a match says, written down without any shortcut: the list of what each kind says.
fn naive_match(each: &Match, context: &PolicyContext<'_>) -> bool {
    let id = context.source;
    let text = |want: &StringMatch, found: Option<&str>| match (want, found) {
        (_, None) => false,
        (StringMatch::Presence, Some(found)) => !found.is_empty(),
        (StringMatch::Exact(want), Some(found)) => **want == *found,
        (StringMatch::Prefix(want), Some(found)) => found.starts_with(&**want),
        (StringMatch::Suffix(want), Some(found)) => found.ends_with(&**want),
    };
    let namespace = id.map(Identity::namespace);
    let principal = id.map(|id| id.as_str().trim_start_matches("spiffe://"));
    let account = |want: &ServiceAccountMatch| {
        id.is_some_and(|id| {
            (id.namespace(), id.service_account()) == (&*want.namespace, &*want.service_account)
        })
    };
    let mut kinds: Vec<bool> = Vec::new();
    let mut add = |answers: Vec<bool>, negated: bool| {
        if !answers.is_empty() {
            kinds.push(answers.contains(&true) != negated);
        }
    };
    add(
        each.namespaces
            .iter()
            .map(|want| text(want, namespace))
            .collect(),
        false,
    );
    add(
        each.not_namespaces
            .iter()
            .map(|want| text(want, namespace))
            .collect(),
        true,
    );
    add(
        each.principals
            .iter()
            .map(|want| text(want, principal))
            .collect(),
        false,
    );
    add(
        each.not_principals
            .iter()
            .map(|want| text(want, principal))
            .collect(),
        true,
    );
    add(each.service_accounts.iter().map(account).collect(), false);
    add(
        each.not_service_accounts.iter().map(account).collect(),
        true,
    );
    let source = context.source_ip;
    add(
        each.source_ips
            .iter()
            .map(|net| net.contains(&source))
            .collect(),
        false,
    );
    add(
        each.not_source_ips
            .iter()
            .map(|net| net.contains(&source))
            .collect(),
        true,
    );
    let destination = context.destination.ip();
    add(
        each.destination_ips
            .iter()
            .map(|net| net.contains(&destination))
            .collect(),
        false,
    );
    add(
        each.not_destination_ips
            .iter()
            .map(|net| net.contains(&destination))
            .collect(),
        true,
    );
    let port = context.destination.port();
    add(
        each.destination_ports
            .iter()
            .map(|want| *want == port)
            .collect(),
        false,
    );
    add(
        each.not_destination_ports
            .iter()
            .map(|want| *want == port)
            .collect(),
        true,
    );
    !kinds.is_empty() && !kinds.contains(&false)
}

fn naive_policy(policy: &Policy, context: &PolicyContext<'_>) -> bool {
    let mut any = false;
    for rule in &policy.rules {
        let mut all = true;
        for clause in rule {
            let mut one = clause.is_empty();
            for each in clause {
                one |= naive_match(each, context);
            }
            all &= one;
        }
        any |= all;
    }
    any
}

fn naive_allowed(policies: &[Policy], context: &PolicyContext<'_>) -> bool {
    let enforced = || policies.iter().filter(|policy| !policy.dry_run);
    let deny = |policy: &&Policy| policy.action == Action::Deny;
    if enforced()
        .filter(deny)
        .any(|policy| naive_policy(policy, context))
    {
        return false;
    }
    let mut allows = enforced().filter(|policy| !deny(policy)).peekable();
    allows.peek().is_none() || allows.any(|policy| naive_policy(policy, context))
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    let part = prop::sample::select(vec!["a", "b", "td", "td/ns/a/sa/a", "/sa/b", "td/ns/b"]);
    prop_oneof![
        part.clone()
            .prop_map(|text| StringMatch::Exact(text.into())),
        part.clone()
            .prop_map(|text| StringMatch::Prefix(text.into())),
        part.prop_map(|text| StringMatch::Suffix(text.into())),
        Just(StringMatch::Presence),
    ]
}

/// Mostly empty, so that the kinds that are set have a chance to agree.
fn few<T: Clone + std::fmt::Debug>(
    each: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec(each, 1..3)]
}

fn one_match() -> impl Strategy<Value = Match> {
    let texts = || few(string_match().boxed());
    let account =
        prop::sample::select(vec![("a", "a"), ("a", "b"), ("b", "b")]).prop_map(|(n, s)| {
            ServiceAccountMatch {
                namespace: n.into(),
                service_account: s.into(),
            }
        });
    let net = prop::sample::select(vec!["10.0.0.0/8", "10.0.0.1/32", "fd00::/8", "0.0.0.0/0"])
        .prop_map(|net| net.parse().unwrap());
    let port = prop::sample::select(vec![80_u16, 81]);
    (
        (texts(), texts(), texts(), texts()),
        (few(account.clone()), few(account)),
        (
            few(net.clone()),
            few(net.clone()),
            few(net.clone()),
            few(net),
        ),
        (few(port.clone()), few(port)),
    )
        .prop_map(|(texts, accounts, nets, ports)| Match {
            namespaces: texts.0,
            not_namespaces: texts.1,
            principals: texts.2,
            not_principals: texts.3,
            service_accounts: accounts.0,
            not_service_accounts: accounts.1,
            source_ips: nets.0,
            not_source_ips: nets.1,
            destination_ips: nets.2,
            not_destination_ips: nets.3,
            destination_ports: ports.0,
            not_destination_ports: ports.1,
        })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let clause = prop::collection::vec(one_match(), 0..3);
    let rule = prop::collection::vec(clause, 0..3);
    let rules = prop::collection::vec(rule, 0..3);
    let action = prop::sample::select(vec![Action::Allow, Action::Deny]);
    (rules, action, prop::bool::weighted(0.2)).prop_map(|(rules, action, dry_run)| Policy {
        dry_run,
        ..policy("p", action, rules)
    })
}

proptest! {
    #[test]
    fn agrees_with_the_naive_model(
        policies in prop::collection::vec(any_policy(), 0..4),
        source in prop::option::of(prop::sample::select(vec![("a", "a"), ("a", "b"), ("b", "b")])),
        source_ip in prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "192.0.2.1", "fd00::1"]),
        destination in prop::sample::select(vec!["10.0.0.1:80", "192.0.2.1:81", "[fd00::1]:80"]),
    ) {
        let policies: Vec<Policy> = policies
            .into_iter()
            .enumerate()
            .map(|(number, policy)| Policy { name: number.to_string().into(), ..policy })
            .collect();
        let source = source.map(|(namespace, account)| Identity::new("td", namespace, account).unwrap());
        let context = PolicyContext {
            source: source.as_ref(),
            source_ip: source_ip.parse().unwrap(),
            destination: destination.parse().unwrap(),
        };
        let workload = Workload::new("w", "w", "default", "default").unwrap();
        let expected = naive_allowed(&policies, &context);
        let snapshot = Snapshot::build(Vec::new(), Vec::new(), policies.clone());
        let arrival = Arrival {
            workload: &workload,
            source: source.as_ref(),
            source_ip: context.source_ip,
            destination: context.destination,
        };
        let judgement = authorize(&arrival, &snapshot);
        prop_assert_eq!(judgement.verdict.is_allow(), expected);
        let on_trial = policies.iter().filter(|policy| policy.dry_run).count();
        prop_assert_eq!(judgement.dry_runs.len(), on_trial);
        // Whoever is named as the reason does match and does that.
        if let Some(by) = judgement.verdict.by() {
            prop_assert!(naive_policy(by, &context) && !by.dry_run);
            prop_assert_eq!(by.action == Action::Allow, expected);
        }
    }
}
