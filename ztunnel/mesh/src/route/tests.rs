//! Where connections go, by example. Each theme is a mesh as people write it and a table of who
//! dials what, and the answer; here is how a table is read.
//!
//! A line is `who -> what => answer`. Before the arrow may stand `roll 3` (the dice; 0 otherwise),
//! `with name=address` (what a name was resolved to), `here b,c` (pods of the source's node that
//! are served by the same proxy, the source is then one of them too; `new@address` for one that the mesh
//! does not know yet), `but address:port` (what the
//! kernel could have chosen), `absent key` (what the control plane says is not in the mesh). With `rolls` the answer is who is chosen for each throw in turn.
//!
//! An answer is
//! - `passthrough workload address:port`, in the clear,
//! - `direct workload address:port`, to a pod of this node,
//! - `tunnel workload@end for authority as identities`,
//! - `waypoint` the same, `gateway` the same and `then` who is behind it,
//! - `resolve name`,
//! - `refused reason`, and after a colon what the text holds.
//!
//! The service that was dialled stands at the end, after `of`. Identities are service accounts of
//! the namespace `default`, or `namespace/account`.

mod balancing;
mod direct;
mod families;
mod in_part;
mod ingress;
mod names;
mod networks;
mod not_pushed;
mod plain;
mod visibility;
mod waypoints;
mod weighted;

use super::*;
use crate::{Lanes, LocalPod, NamespacedHostname, Uid, local};

/// Checks a table, and that it has so many lines that a part of it cannot be lost.
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

/// One question of a table, taken apart.
#[derive(Default)]
struct Question<'a> {
    who: &'a str,
    random: u64,
    rolls: bool,
    resolved: Vec<(Arc<str>, IpAddr)>,
    here: Vec<&'a str>,
    except: Vec<SocketAddr>,
    absent: Vec<DemandKey>,
}

impl<'a> Question<'a> {
    fn read(text: &'a str) -> Self {
        let mut words = text.split_whitespace();
        let mut question = Self {
            who: words.next().unwrap(),
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
                "here" => question.here = words.next().unwrap().split(',').collect(),
                "absent" => question.absent.push(key(words.next().unwrap())),
                "but" => question.except.push(words.next().unwrap().parse().unwrap()),
                other => panic!("{other}"),
            }
        }
        question
    }

    fn view(&self, mesh: &Arc<Snapshot>) -> View {
        let mut here = self.here.clone();
        let is_here = |name: &&str| name.split('@').next() == Some(self.who);
        if !here.is_empty() && !here.iter().any(is_here) {
            here.push(self.who);
        }
        let pods = here.iter().zip(1..).map(|(name, cookie)| {
            let (uid, address) = match name.split_once('@') {
                Some((uid, address)) => (Uid(uid.into()), Some(address.parse().unwrap())),
                None => (Uid((*name).into()), None),
            };
            let known = mesh.workload_by_uid(&uid);
            let known = known
                .into_iter()
                .flat_map(|known| known.workload_ips.to_vec());
            LocalPod {
                uid,
                account: None,
                cookie: NetnsCookie(cookie),
                addresses: known.chain(address).collect(),
                redirected: false,
            }
        });
        View::new(mesh.clone(), pods, &Lanes::default())
    }
}

/// What was asked for: `network/address` or `namespace/hostname`.
fn key(text: &str) -> DemandKey {
    let (before, after) = text.split_once('/').unwrap();
    match after.parse() {
        Ok(address) => DemandKey::Address(NetworkAddress {
            network: before.into(),
            address,
        }),
        Err(_no_address) => DemandKey::Service(NamespacedHostname {
            namespace: before.into(),
            hostname: after.into(),
        }),
    }
}

fn answer(mesh: &Arc<Snapshot>, question: &str, expected: &str) -> String {
    let (before, what) = question.split_once("->").unwrap();
    let question = Question::read(before);
    let view = question.view(mesh);
    let uid = Uid(question.who.into());
    let source = mesh.workload_by_uid(&uid).unwrap();
    let request = OutboundRequest {
        except: &question.except,
        resolved: &question.resolved,
        absent: &question.absent,
        ..OutboundRequest::new(source, what.trim().parse().unwrap())
    };
    if question.rolls {
        let throws = u64::try_from(expected.split(' ').count()).unwrap();
        let chosen = (0..throws).map(|random| chosen(route(&request, &view, random)));
        return chosen.collect::<Vec<_>>().join(" ");
    }
    match route(&request, &view, question.random) {
        Ok(route) => show(&route),
        Err(error) => {
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

/// Only who it is.
fn chosen(route: Result<Route, RouteError>) -> String {
    match route {
        Ok(Route::Passthrough { workload, to, .. }) => {
            workload.map_or_else(|| to.to_string(), |workload| workload.name.to_string())
        }
        Ok(Route::Direct { workload, .. }) => workload.name.to_string(),
        Ok(Route::Tunnel(hop)) => hop.workload.name.to_string(),
        Ok(Route::Resolve { hostname }) => hostname.to_string(),
        Err(error) => error.reason().to_owned(),
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
        Route::Resolve { hostname } => format!("resolve {hostname}"),
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
