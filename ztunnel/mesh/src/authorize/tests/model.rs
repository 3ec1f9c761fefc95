//! Verdicts against a naive model of the documented meaning of policies.

use proptest::prelude::*;

use super::*;
use crate::ServiceAccountMatch;

/// A match without any shortcut: the result of each kind that is set.
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
    add(
        &mut kinds,
        [&each.namespaces, &each.not_namespaces],
        |want| text(want, namespace),
    );
    add(
        &mut kinds,
        [&each.principals, &each.not_principals],
        |want| text(want, principal),
    );
    add(
        &mut kinds,
        [&each.service_accounts, &each.not_service_accounts],
        account,
    );
    let source = context.source_ip;
    add(
        &mut kinds,
        [&each.source_ips, &each.not_source_ips],
        |net| net.contains(&source),
    );
    let to = context.destination;
    let at = |net: &ipnet::IpNet| net.contains(&to.ip());
    add(
        &mut kinds,
        [&each.destination_ips, &each.not_destination_ips],
        at,
    );
    let port = |want: &u16| *want == to.port();
    add(
        &mut kinds,
        [&each.destination_ports, &each.not_destination_ports],
        port,
    );
    !kinds.is_empty() && !kinds.contains(&false)
}

/// Adds the results of one kind and of its negation, each only if it is set.
fn add<T>(kinds: &mut Vec<bool>, [required, excluded]: [&Vec<T>; 2], holds: impl Fn(&T) -> bool) {
    let holding = |values: &Vec<T>| values.iter().filter(|value| holds(value)).count();
    if !required.is_empty() {
        kinds.push(holding(required) > 0);
    }
    if !excluded.is_empty() {
        kinds.push(holding(excluded) == 0);
    }
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

/// Mostly empty, so that the kinds that are set can match together.
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
            http: None,
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
    fn verdicts_agree_with_the_naive_model(
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
            http: None,
        };
        let workload = Workload::new("w", "w", "default", "default").unwrap();
        let expected = naive_allowed(&policies, &context);
        let snapshot = Snapshot::build(Vec::new(), Vec::new(), policies.clone());
        let request = InboundRequest {
            workload: &workload,
            source: source.as_ref(),
            source_ip: context.source_ip,
            destination: context.destination,
            http: None,
        };
        let result = authorize(&request, &snapshot);
        assert_eq!(explain(&request, &snapshot).result, result);
        prop_assert_eq!(result.verdict.is_allow(), expected);
        let dry_runs = policies.iter().filter(|policy| policy.dry_run).count();
        prop_assert_eq!(result.dry_runs.len(), dry_runs);
        // The policy that is named as the reason matches and has that action.
        if let Some(by) = result.verdict.by() {
            prop_assert!(naive_policy(by, &context) && !by.dry_run);
            prop_assert_eq!(by.action == Action::Allow, expected);
        }
    }
}
