//! Route decisions by example. Each file is a mesh in the local format and a table of connections
//! with their routes; this file reads the tables.
//!
//! A line is `source -> address => route`. Before the arrow may stand `roll 3` (the random number;
//! 0 otherwise), `with name=address` (a resolved host name), `here b,c` (pods that the node of the
//! source serves, besides the source; `new@address` is a pod whose workload is not in the mesh), `but address:port` (a backend that the kernel could have
//! chosen), `absent key` (a key that the control plane does not have). With `rolls` the route is
//! the chosen workload for each random number from 0.
//!
//! A route is
//! - `passthrough workload address:port`, plain TCP,
//! - `direct workload address:port`, to a pod of this node,
//! - `tunnel workload@end for authority as identities`,
//! - `waypoint` the same, `gateway` the same and `then` the identities behind it,
//! - `resolve name`,
//! - `needs resource key` or `needs workload uid`,
//! - `refused reason`, and after a colon a part of the message.
//!
//! The dialled service stands at the end, after `of`. Identities are service accounts of
//! the namespace `default`, or `namespace/account`.

mod balancing;
mod direct;
mod explain;
mod families;
mod ingress;
mod names;
mod networks;
mod not_pushed;
mod partial;
mod plain;
mod visibility;
mod waypoints;
mod weighted;

use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::fastpath::{self, FastPathKey};
use crate::{
    Identity, LocalPod, Missing, NamespacedHostname, NetnsCookie, NetworkAddress, PathSettings,
    ResourceKey, Service, Snapshot, Uid, local,
};

/// Checks a table and its number of lines, so that no part of it is lost. Also checks that the
/// explanation of each decision has the same result.
fn check(mesh: &str, lines: usize, table: &str) {
    check_in(local::parse(mesh).unwrap().into_snapshot(), lines, table);
}

fn check_in(mesh: Snapshot, lines: usize, table: &str) {
    let mesh = Arc::new(mesh);
    let mut wrong = String::new();
    let mut count = 0;
    for line in table.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        count += 1;
        let (question, expected) = line.split_once(" => ").unwrap();
        let found = answer(&mesh, question, expected);
        if found != expected {
            wrong.push_str(&format!("{question}\n    => {expected}\n    but {found}\n"));
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    assert_eq!(count, lines, "lines in the table");
}

/// The left side of a line.
#[derive(Default)]
struct Question<'a> {
    source: &'a str,
    random: u64,
    rolls: bool,
    resolved: Vec<(Arc<str>, IpAddr)>,
    local_pods: Vec<&'a str>,
    except: Vec<SocketAddr>,
    absent: Vec<ResourceKey>,
}

impl<'a> Question<'a> {
    fn read(text: &'a str) -> Self {
        let mut words = text.split_whitespace();
        let mut question = Self {
            source: words.next().unwrap(),
            ..Self::default()
        };
        while let Some(word) = words.next() {
            match word {
                "roll" => question.random = words.next().unwrap().parse().unwrap(),
                "rolls" => question.rolls = true,
                "with" => {
                    let (name, address) = words.next().unwrap().split_once('=').unwrap();
                    let address = address.parse().unwrap();
                    question.resolved.push((name.into(), address));
                }
                "here" => question.local_pods = words.next().unwrap().split(',').collect(),
                "absent" => question.absent.push(key(words.next().unwrap())),
                "but" => question.except.push(words.next().unwrap().parse().unwrap()),
                other => panic!("{other}"),
            }
        }
        question
    }

    fn view(&self, mesh: &Arc<Snapshot>) -> View {
        let mut names = self.local_pods.clone();
        let is_source = |name: &&str| name.split('@').next() == Some(self.source);
        if !names.is_empty() && !names.iter().any(is_source) {
            names.push(self.source);
        }
        let pods = names.iter().zip(1..).map(|(name, cookie)| {
            let (uid, address) = match name.split_once('@') {
                Some((uid, address)) => (Uid(uid.into()), Some(address.parse().unwrap())),
                None => (Uid((*name).into()), None),
            };
            let workload = mesh.workload_by_uid(&uid);
            let addresses = workload
                .into_iter()
                .flat_map(|workload| workload.workload_ips.to_vec());
            LocalPod {
                uid,
                account: None,
                announced: None,
                cookie: NetnsCookie(cookie),
                addresses: addresses.chain(address).collect(),
                redirected: false,
                leaving: false,
            }
        });
        View::new(mesh.clone(), pods, &PathSettings::default())
    }
}

/// A discovery key: `network/address` or `namespace/hostname`.
fn key(text: &str) -> ResourceKey {
    let (before, after) = text.split_once('/').unwrap();
    match after.parse() {
        Ok(address) => ResourceKey::Address(NetworkAddress {
            network: before.into(),
            address,
        }),
        Err(_no_address) => ResourceKey::Service(NamespacedHostname {
            namespace: before.into(),
            hostname: after.into(),
        }),
    }
}

/// Decides, and checks that the explanation has the same result.
fn decided(request: &OutboundRequest<'_>, view: &View, random: u64) -> Decision {
    let decision = route(request, view, random);
    let explained = explain(request, view, random);
    assert_eq!(explained.decision, decision);
    if let Decision::Route(routed) = &decision {
        let source = view.pods().find(|pod| pod.uid == request.source.uid);
        let key = FastPathKey {
            pod: source.map_or(NetnsCookie(0), |pod| pod.cookie),
            destination: request.destination,
        };
        // The entry that the decision gives is the one that a later check expects.
        assert_eq!(
            fastpath::entry(&key, &routed.destinations, view),
            fastpath::entry_after_change(&key, request.absent, view)
        );
    }
    decision
}

fn answer(mesh: &Arc<Snapshot>, question: &str, expected: &str) -> String {
    let (before, what) = question.split_once("->").unwrap();
    let question = Question::read(before);
    let view = question.view(mesh);
    let uid = Uid(question.source.into());
    let source = mesh.workload_by_uid(&uid).unwrap();
    let request = OutboundRequest {
        except: &question.except,
        resolved: &question.resolved,
        absent: &question.absent,
        ..OutboundRequest::new(source, what.trim().parse().unwrap())
    };
    if question.rolls {
        let throws = u64::try_from(expected.split(' ').count()).unwrap();
        let chosen = (0..throws).map(|random| chosen(decided(&request, &view, random)));
        return chosen.collect::<Vec<_>>().join(" ");
    }
    match decided(&request, &view, question.random) {
        Decision::Route(routed) => show(&routed.route),
        Decision::Needs(missing) => show_missing(&missing),
        Decision::Resolve(hostname) => format!("resolve {hostname}"),
        Decision::Refuse(error) => {
            let short = format!("refused {}", error.reason());
            let part = expected
                .strip_prefix(&short)
                .and_then(|e| e.strip_prefix(": "));
            match part {
                Some(part) if error.to_string().contains(part) => expected.to_owned(),
                None if expected == short => short,
                _ => format!("{short}: {error}"),
            }
        }
    }
}

/// Only the name of the chosen workload.
fn chosen(decision: Decision) -> String {
    let route = match decision {
        Decision::Route(routed) => routed.route,
        Decision::Resolve(hostname) => return hostname.to_string(),
        Decision::Needs(missing) => return show_missing(&missing),
        Decision::Refuse(error) => return error.reason().to_owned(),
    };
    match route {
        Route::Passthrough { workload, to, .. } => {
            workload.map_or_else(|| to.to_string(), |workload| workload.name.to_string())
        }
        Route::Direct { workload, .. } => workload.name.to_string(),
        Route::Tunnel(hop) => hop.workload.name.to_string(),
    }
}

fn show_missing(missing: &Missing) -> String {
    match missing {
        Missing::Resource(key) => format!("needs resource {key}"),
        Missing::OwnWorkload(uid) => format!("needs own workload {uid}"),
        Missing::LocalWorkload(uid) => format!("needs workload {uid}"),
    }
}

fn show(route: &Route) -> String {
    let of = |service: &Option<Arc<Service>>| {
        let service = service.as_ref();
        service.map_or_else(String::new, |service| format!(" of {}", service.name))
    };
    match route {
        Route::Passthrough {
            to,
            workload,
            service,
        } => {
            let workload = workload.as_ref();
            let name = workload.map_or("unknown", |workload| &workload.name);
            format!("passthrough {name} {to}{}", of(service))
        }
        Route::Direct {
            to,
            workload,
            service,
            ..
        } => format!("direct {} {to}{}", workload.name, of(service)),
        Route::Tunnel(hop) => {
            let (kind, then) = match &hop.kind {
                HopKind::Destination => ("tunnel", String::new()),
                HopKind::Waypoint => ("waypoint", String::new()),
                HopKind::NetworkGateway { then } => ("gateway", format!(" then {}", names(then))),
            };
            format!(
                "{kind} {}@{} for {} as {}{then}{}",
                hop.workload.name,
                hop.at,
                hop.authority,
                names(&hop.expected),
                of(&hop.service)
            )
        }
    }
}

fn names(identities: &[Identity]) -> String {
    let short = |identity: &Identity| match (identity.trust_domain(), identity.namespace()) {
        ("cluster.local", "default") => identity.service_account().to_owned(),
        ("cluster.local", namespace) => format!("{namespace}/{}", identity.service_account()),
        _ => identity.principal().to_owned(),
    };
    let names: Vec<_> = identities.iter().map(short).collect();
    names.join(",")
}
