//! What a DNS name resolves to in the mesh: a pure function of the snapshot, the client and the
//! question.
//!
//! The names are those that Istio's ztunnel answers, in its order: the name itself, the full names of
//! a Kubernetes short name, and both again without the search domain that the application's resolver
//! may have appended. Each of them is looked up exactly, then as wider and wider wildcards. A name
//! that is not found is forwarded to the upstream resolver: this function never says that a name does
//! not exist.

use std::net::IpAddr;

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;

use crate::{HealthPolicy, HealthStatus, IpFamilies, ServiceEntry, Snapshot, Workload};

/// The time to live of an answer, in seconds; the value of Istio's ztunnel.
pub const TTL: u32 = 30;

/// The most addresses of one answer. More do not fit into a message (65,535 bytes, 16 for each).
const MAX_ADDRESSES: usize = 4000;

/// The address family of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Type A.
    V4,
    /// Type AAAA.
    V6,
}

impl Family {
    const fn holds(self, address: IpAddr) -> bool {
        matches!(
            (self, address),
            (Self::V4, IpAddr::V4(_)) | (Self::V6, IpAddr::V6(_))
        )
    }

    const fn is_among(self, families: IpFamilies) -> bool {
        match families {
            IpFamilies::Automatic | IpFamilies::Dual => true,
            IpFamilies::Ipv4Only => matches!(self, Self::V4),
            IpFamilies::Ipv6Only => matches!(self, Self::V6),
        }
    }
}

/// A DNS question.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The name in lower case, without the final dot; empty if it cannot be a host name.
    pub name: &'a str,
    /// The address family of a question.
    pub family: Family,
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The name is in the mesh and has these addresses.
    Records {
        /// The addresses, in random order.
        addresses: Vec<IpAddr>,
        /// The name of these addresses, if the name of the question is that one with a search
        /// domain appended.
        canonical: Option<String>,
    },
    /// The name is in the mesh and has no address of the family.
    NoData,
    /// The name is not in the mesh.
    NotMine,
}

/// Answers a question of a workload. `domain` is the cluster domain; `random` orders the addresses.
#[must_use]
pub fn answer(
    mesh: &Snapshot,
    domain: &str,
    client: &Workload,
    question: &Question<'_>,
    random: u64,
) -> Answer {
    if question.name.is_empty() {
        return Answer::NotMine;
    }
    let lookup = Lookup {
        mesh,
        services: &format!(".svc.{domain}"),
        client,
    };
    for alias in aliases(question.name, &client.namespace, domain) {
        let Some((found, exact)) = lookup.find(&alias) else {
            continue;
        };
        let mut addresses = found.addresses(client, question.family);
        if addresses.is_empty() {
            return Answer::NoData;
        }
        addresses.shuffle(&mut rand::rngs::SmallRng::seed_from_u64(random));
        addresses.truncate(MAX_ADDRESSES);
        return Answer::Records {
            addresses,
            canonical: alias.stripped.filter(|_| exact),
        };
    }
    Answer::NotMine
}

/// Whether the answer to a question depends on the workload that asks: whether a service of any
/// namespace, visible or not, has one of the names that this name may stand for. If none has, every
/// workload gets the same answer, [`Answer::NotMine`]. `namespace` is the client's; without it, a short
/// name may stand for another name in each namespace.
#[must_use]
pub fn may_be_mine(mesh: &Snapshot, domain: &str, namespace: Option<&str>, name: &str) -> bool {
    if name.is_empty() {
        return false;
    }
    let Some(namespace) = namespace else {
        return true;
    };
    let known = |hostname: &str| mesh.services_by_hostname(hostname).next().is_some();
    aliases(name, namespace, domain).iter().any(|alias| {
        let mut rest = &*alias.name;
        let mut found = known(rest);
        while let Some((_, parent)) = rest.split_once('.') {
            // Without its first label a pod's name is its service's.
            found |= known(&format!("*.{parent}")) || (alias.pod && known(parent));
            rest = parent;
        }
        found
    })
}

/// A name that the name of the question may stand for.
struct Alias {
    name: String,
    /// The name without the search domain, if one was removed.
    stripped: Option<String>,
    /// Whether it may be a pod's: `<pod>.<service>.<namespace>.svc.<domain>`.
    pod: bool,
}

/// All names that a name may stand for, the likeliest first.
fn aliases(name: &str, namespace: &str, domain: &str) -> Vec<Alias> {
    let own = format!("{namespace}.svc.{domain}");
    let services = format!("svc.{domain}");
    let is_pod = is_pod(name, &services);
    let mut found: Vec<Alias> = Vec::new();
    let mut add = |alias: Alias| {
        if found.iter().all(|known| known.name != alias.name) {
            found.push(alias);
        }
    };
    add(Alias {
        name: name.to_owned(),
        stripped: None,
        pod: is_pod,
    });
    for (name, pod) in expansions(name, &own, domain) {
        add(Alias {
            name,
            stripped: None,
            pod,
        });
    }
    for search in [&own, &services, domain] {
        let Some(short) = without_domain(name, search) else {
            continue;
        };
        add(Alias {
            name: short.to_owned(),
            stripped: Some(short.to_owned()),
            pod: is_pod,
        });
        for (name, pod) in expansions(short, &own, domain) {
            add(Alias {
                name,
                stripped: Some(short.to_owned()),
                pod,
            });
        }
    }
    found
}

/// The full names that a short one may stand for in Kubernetes, and whether each may be a pod's.
fn expansions(name: &str, own: &str, domain: &str) -> Vec<(String, bool)> {
    let in_svc = name.ends_with(".svc");
    match name.split('.').count() {
        1 => vec![(format!("{name}.{own}"), false)],
        2 => vec![
            (format!("{name}.svc.{domain}"), false),
            (format!("{name}.{own}"), true),
        ],
        3 if in_svc => vec![
            (format!("{name}.{domain}"), false),
            (format!("{name}.svc.{domain}"), true),
        ],
        3 => vec![(format!("{name}.svc.{domain}"), true)],
        4 if in_svc => vec![(format!("{name}.{domain}"), true)],
        _ => Vec::new(),
    }
}

fn without_domain<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let short = name.strip_suffix(domain)?.strip_suffix('.')?;
    (!short.is_empty()).then_some(short)
}

fn is_pod(name: &str, services: &str) -> bool {
    without_domain(name, services).is_some_and(|short| short.split('.').count() == 3)
}

/// A lookup of names for one client.
struct Lookup<'a> {
    mesh: &'a Snapshot,
    /// The suffix of the names of Kubernetes services, with the leading dot.
    services: &'a str,
    client: &'a Workload,
}

/// The service or pod of a name.
enum Found<'a> {
    Service(&'a ServiceEntry),
    Pod(&'a Workload),
}

impl<'a> Lookup<'a> {
    /// The service or pod of an alias, and whether its name matches exactly, not by a wildcard.
    fn find(&self, alias: &Alias) -> Option<(Found<'a>, bool)> {
        if let Some(entry) = self.service(&alias.name) {
            return Some((Found::Service(entry), true));
        }
        let mut rest = &*alias.name;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(entry) = self.service(&format!("*.{parent}")) {
                return Some((Found::Service(entry), false));
            }
            rest = parent;
        }
        if !alias.pod {
            return None;
        }
        let pod = self.pod(&alias.name)?;
        Some((Found::Pod(pod), true))
    }

    /// The service of a host name, if it has addresses for an answer.
    fn service(&self, hostname: &str) -> Option<&'a ServiceEntry> {
        let has_addresses =
            |entry: &ServiceEntry| !entry.service.vips.is_empty() || self.is_headless(entry);
        let namespace = &self.client.namespace;
        let found = self
            .mesh
            .resolve_hostname_among(hostname, namespace, has_addresses);
        found.map(|entry| &**entry)
    }

    /// Whether a service is a Kubernetes service without virtual addresses. Other services without
    /// them are resolved by the upstream resolver.
    fn is_headless(&self, entry: &ServiceEntry) -> bool {
        let service = &entry.service;
        service.vips.is_empty()
            && service.ranges.is_empty()
            && service.hostname.ends_with(self.services)
    }

    /// A pod of a headless service. In a StatefulSet its host name is the pod's name.
    fn pod(&self, name: &str) -> Option<&'a Workload> {
        let (pod, service) = name.split_once('.')?;
        let entry = self.service(service)?;
        if !self.is_headless(entry) {
            return None;
        }
        let named = || endpoints(entry).filter(|workload| *workload.name == *pod);
        named()
            .find(|workload| workload.cluster_id == self.client.cluster_id)
            .or_else(|| named().next())
    }
}

/// The endpoints of a service that its health policy allows.
fn endpoints(entry: &ServiceEntry) -> impl Iterator<Item = &Workload> {
    let balancing = entry.service.load_balancing.as_ref();
    let all = balancing.is_some_and(|of| of.health_policy == HealthPolicy::AllowAll);
    let workloads = entry.endpoints.iter().map(|endpoint| &*endpoint.workload);
    workloads.filter(move |workload| all || workload.status == HealthStatus::Healthy)
}

impl Found<'_> {
    /// The addresses of a family in the client's network.
    fn addresses(&self, client: &Workload, family: Family) -> Vec<IpAddr> {
        let of = |workload: &Workload| {
            let is_reachable = workload.network == client.network;
            let mut all = workload.workload_ips.iter().copied();
            all.find(|address| is_reachable && family.holds(*address))
        };
        match self {
            Self::Pod(workload) => of(workload).into_iter().collect(),
            Self::Service(entry) if !family.is_among(entry.service.ip_families) => Vec::new(),
            Self::Service(entry) if entry.service.vips.is_empty() => {
                endpoints(entry).filter_map(of).collect()
            }
            Self::Service(entry) => {
                let vips = entry.service.vips.iter();
                vips.filter(|vip| vip.network == client.network && family.holds(vip.address))
                    .map(|vip| vip.address)
                    .collect()
            }
        }
    }
}

#[cfg(test)]
mod tests;
