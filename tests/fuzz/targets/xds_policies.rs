//! Policies and a connection. The decision equals that of an evaluator that implements the
//! documentation.
#![no_main]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use api::istio::security::{
    Address, Authorization, Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch,
    string_match::MatchType,
};
use arbitrary::{Arbitrary, Result, Unstructured};
use mesh::Workload;
use mesh::authorize::{InboundRequest, authorize};
use prost::Message as _;
use prost_types::Any;
use upstream::ads::{AUTHORIZATION_TYPE, OfflineClient};
use ztunnel_fuzz::fuzz_target;
use ztunnel_fuzz::naive::{self, Caller};
use ztunnel_fuzz::world::{NAMES, address, one_of};

#[derive(Debug)]
struct Policies(Vec<Authorization>);

impl<'a> Arbitrary<'a> for Policies {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        let count = input.int_in_range(0..=4)?;
        let policies: Result<Vec<_>> = (0..count).map(|at| policy(input, at)).collect();
        Ok(Self(policies?))
    }
}

fn up_to<'a, T>(
    input: &mut Unstructured<'a>,
    most: usize,
    each: impl Fn(&mut Unstructured<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    let count = input.int_in_range(0..=most)?;
    (0..count).map(|_| each(input)).collect()
}

/// Mostly empty, so that the other fields match together often enough.
fn rarely<'a, T>(
    input: &mut Unstructured<'a>,
    each: impl Fn(&mut Unstructured<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    if input.ratio(3, 4)? {
        return Ok(Vec::new());
    }
    up_to(input, 2, each)
}

fn policy(input: &mut Unstructured<'_>, at: usize) -> Result<Authorization> {
    Ok(Authorization {
        name: format!("p{at}"),
        namespace: one_of(input, &NAMES)?.to_owned(),
        scope: one_of(
            input,
            &[Scope::Global, Scope::Namespace, Scope::WorkloadSelector],
        )? as i32,
        action: input.int_in_range(0..=1)?,
        rules: up_to(input, 2, |input| {
            Ok(Rule {
                clauses: up_to(input, 2, |input| {
                    Ok(Clause {
                        matches: up_to(input, 2, kinds)?,
                    })
                })?,
            })
        })?,
        dry_run: input.ratio(1, 5)?,
        ..Authorization::default()
    })
}

fn kinds(input: &mut Unstructured<'_>) -> Result<Match> {
    Ok(Match {
        namespaces: rarely(input, text)?,
        not_namespaces: rarely(input, text)?,
        principals: rarely(input, text)?,
        not_principals: rarely(input, text)?,
        source_ips: rarely(input, range)?,
        not_source_ips: rarely(input, range)?,
        destination_ips: rarely(input, range)?,
        not_destination_ips: rarely(input, range)?,
        destination_ports: rarely(input, |input| one_of(input, &[0, 80, 81]))?,
        not_destination_ports: rarely(input, |input| one_of(input, &[0, 80, 81]))?,
        service_accounts: rarely(input, account)?,
        not_service_accounts: rarely(input, account)?,
        extensions: Vec::new(),
    })
}

fn text(input: &mut Unstructured<'_>) -> Result<StringMatch> {
    const TEXTS: [&str; 10] = [
        "",
        "a",
        "b",
        "td/ns/a",
        "td/ns/a/sa/a",
        "spiffe://td/ns/a/sa/a",
        "/sa/b",
        "spiffe://",
        "aa",
        "default",
    ];
    let text = one_of(input, &TEXTS)?.to_owned();
    Ok(StringMatch {
        match_type: Some(match input.int_in_range(0..=3)? {
            0 => MatchType::Exact(text),
            1 => MatchType::Prefix(text),
            2 => MatchType::Suffix(text),
            _ => MatchType::Presence(()),
        }),
    })
}

fn range(input: &mut Unstructured<'_>) -> Result<Address> {
    let (bytes, longest) = match address(input)? {
        IpAddr::V4(v4) if input.ratio(1, 4)? => (v4.to_ipv6_mapped().octets().to_vec(), 128),
        IpAddr::V4(v4) => (v4.octets().to_vec(), 32),
        IpAddr::V6(v6) => (v6.octets().to_vec(), 128),
    };
    Ok(Address {
        address: bytes.into(),
        length: input.int_in_range(0..=longest)?,
    })
}

fn account(input: &mut Unstructured<'_>) -> Result<ServiceAccountMatch> {
    Ok(ServiceAccountMatch {
        namespace: one_of(input, &NAMES)?.to_owned(),
        service_account: one_of(input, &NAMES)?.to_owned(),
    })
}

fuzz_target!(|input: (Policies, Caller, Vec<u8>)| {
    let (Policies(policies), caller, listed) = input;
    let mut workload = Workload::new("w", "w", "a", "default").unwrap();
    let keys = listed
        .iter()
        .filter_map(|at| policies.get(usize::from(*at)))
        .map(|policy| Arc::from(format!("{}/{}", policy.namespace, policy.name)));
    // A decoded workload lists no policy twice.
    let keys: BTreeSet<Arc<str>> = keys.collect();
    workload.authorization_policies = keys.into_iter().collect();

    let mut client = OfflineClient::new("td");
    let response = DeltaDiscoveryResponse {
        type_url: AUTHORIZATION_TYPE.to_owned(),
        resources: policies.iter().map(resource).collect(),
        ..DeltaDiscoveryResponse::default()
    };
    let refused = ztunnel_fuzz::block_on(client.apply(response));
    assert_eq!(refused, Some(0), "{policies:?}");

    let applying = policies.iter().filter(|policy| applies(policy, &workload));
    let request = InboundRequest {
        workload: &workload,
        source: caller.identity.as_ref(),
        source_ip: caller.source,
        destination: caller.destination,
        http: None,
    };
    let decision = authorize(&request, &client.mesh);
    let applying: Vec<_> = applying.cloned().collect();
    let expected = naive::allowed(&applying, &caller);
    assert_eq!(
        decision.verdict.is_allow(),
        expected,
        "{applying:#?} {caller:?}"
    );
    let dry_runs = applying.iter().filter(|policy| policy.dry_run).count();
    assert_eq!(decision.dry_runs.len(), dry_runs);
});

fn applies(policy: &Authorization, workload: &Workload) -> bool {
    let key = format!("{}/{}", policy.namespace, policy.name);
    match Scope::try_from(policy.scope).unwrap() {
        Scope::Global => true,
        Scope::Namespace => policy.namespace == *workload.namespace,
        Scope::WorkloadSelector => workload.authorization_policies.iter().any(|it| **it == key),
    }
}

fn resource(policy: &Authorization) -> Resource {
    Resource {
        name: format!("{}/{}", policy.namespace, policy.name),
        resource: Some(Any {
            type_url: AUTHORIZATION_TYPE.to_owned(),
            value: policy.encode_to_vec().into(),
        }),
        ..Resource::default()
    }
}
