//! Policies of a mesh, and a connection: the verdict is that of the documentation's words.
#![no_main]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use prost_types::Any;
use ztunnel::mesh::Workload;
use ztunnel::path::authorize::{Arrival, authorize};
use ztunnel::xds::AUTHORIZATION_TYPE;
use ztunnel::xds::Intake;
use ztunnel::xds::proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use ztunnel::xds::proto::istio::security::{
    Address, Authorization, Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch,
    string_match::MatchType,
};
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

fn few<'a, T>(
    input: &mut Unstructured<'a>,
    most: usize,
    each: impl Fn(&mut Unstructured<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    let count = input.int_in_range(0..=most)?;
    (0..count).map(|_| each(input)).collect()
}

/// Mostly nothing, so that the kinds that are set have a chance to agree.
fn seldom<'a, T>(
    input: &mut Unstructured<'a>,
    each: impl Fn(&mut Unstructured<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    if input.ratio(3, 4)? {
        return Ok(Vec::new());
    }
    few(input, 2, each)
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
        rules: few(input, 2, |input| {
            Ok(Rule {
                clauses: few(input, 2, |input| {
                    Ok(Clause {
                        matches: few(input, 2, kinds)?,
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
        namespaces: seldom(input, text)?,
        not_namespaces: seldom(input, text)?,
        principals: seldom(input, text)?,
        not_principals: seldom(input, text)?,
        source_ips: seldom(input, range)?,
        not_source_ips: seldom(input, range)?,
        destination_ips: seldom(input, range)?,
        not_destination_ips: seldom(input, range)?,
        destination_ports: seldom(input, |input| one_of(input, &[0, 80, 81]))?,
        not_destination_ports: seldom(input, |input| one_of(input, &[0, 80, 81]))?,
        service_accounts: seldom(input, account)?,
        not_service_accounts: seldom(input, account)?,
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
        IpAddr::V4(four) if input.ratio(1, 4)? => (four.to_ipv6_mapped().octets().to_vec(), 128),
        IpAddr::V4(four) => (four.octets().to_vec(), 32),
        IpAddr::V6(six) => (six.octets().to_vec(), 128),
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

fuzz_target!(|said: (Policies, Caller, Vec<u8>)| {
    let (Policies(policies), caller, listed) = said;
    let mut workload = Workload::new("w", "w", "a", "default").unwrap();
    let keys = listed
        .iter()
        .filter_map(|at| policies.get(usize::from(*at)))
        .map(|policy| Arc::from(format!("{}/{}", policy.namespace, policy.name)));
    // A workload that was read names none twice.
    let keys: BTreeSet<Arc<str>> = keys.collect();
    workload.authorization_policies = keys.into_iter().collect();

    let mut taken = Intake::new("td");
    let response = DeltaDiscoveryResponse {
        type_url: AUTHORIZATION_TYPE.to_owned(),
        resources: policies.iter().map(resource).collect(),
        ..DeltaDiscoveryResponse::default()
    };
    let refused = ztunnel_fuzz::block_on(taken.take(response));
    assert_eq!(refused, Some(0), "{policies:?}");

    let apply = policies.iter().filter(|policy| applies(policy, &workload));
    let arrival = Arrival {
        workload: &workload,
        source: caller.identity.as_ref(),
        source_ip: caller.source,
        destination: caller.destination,
    };
    let judgement = authorize(&arrival, &taken.mesh);
    let apply: Vec<_> = apply.cloned().collect();
    let expected = naive::allowed(&apply, &caller);
    assert_eq!(
        judgement.verdict.is_allow(),
        expected,
        "{apply:#?} {caller:?}"
    );
    let trials = apply.iter().filter(|policy| policy.dry_run).count();
    assert_eq!(judgement.dry_runs.len(), trials);
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
