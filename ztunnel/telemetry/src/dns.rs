//! Metrics of the DNS proxy, with the names and labels of Istio's ztunnel.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::labels::UNKNOWN;
use mesh::Workload;

/// How many sets of labels one metric may have; what comes later counts as unknown.
const MOST_SERIES: usize = 2000;

/// The upper ends of the histogram's buckets, in seconds.
const BUCKETS: [f64; 6] = [0.001, 0.005, 0.01, 0.1, 1.0, 5.0];

/// What the DNS proxy counts.
#[derive(Debug)]
pub struct DnsMetrics {
    requests: Bounded<Asked, Counter>,
    upstream_requests: Bounded<Asked, Counter>,
    upstream_failures: Bounded<Asked, Counter>,
    upstream_duration: Bounded<Asked, Histogram, fn() -> Histogram>,
    on_demand: Bounded<OnDemand, Counter>,
    refused: Family<Refusals, Counter>,
}

/// Who asked what, and how.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    request_query_type: &'static str,
    request_protocol: &'static str,
    source_canonical_service: Arc<str>,
    source_canonical_revision: Arc<str>,
}

/// Whose connection made the proxy resolve a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OnDemand {
    source_workload: Arc<str>,
    source_canonical_service: Arc<str>,
    source_canonical_revision: Arc<str>,
    source_workload_namespace: Arc<str>,
    source_principal: Arc<str>,
    source_app: Arc<str>,
    source_version: Arc<str>,
    source_cluster: Arc<str>,
    hostname: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusals {
    reason: &'static str,
}

/// The labels of one query. Made once a query, then counted on.
#[derive(Debug, Clone)]
pub struct DnsQuery(Asked);

impl DnsQuery {
    /// A query for records of a type, over a protocol (`udp`, `tcp`), of a workload if it is known.
    #[must_use]
    pub fn new(kind: Option<u16>, protocol: &'static str, source: Option<&Workload>) -> Self {
        Self(Asked {
            request_query_type: kind.map_or(UNKNOWN, mnemonic),
            request_protocol: protocol,
            source_canonical_service: value(source.map(|source| &source.canonical_name)),
            source_canonical_revision: value(source.map(|source| &source.canonical_revision)),
        })
    }
}

/// Why the proxy did not even ask a resolver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsRefusal {
    /// It is no query.
    Malformed,
    /// It is not known which resolver the application meant.
    UnknownResolver,
    /// The mesh does not know the pod.
    UnknownWorkload,
    /// The pod has too much under way.
    TooMany,
}

impl DnsRefusal {
    const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownResolver => "unknown_resolver",
            Self::UnknownWorkload => "unknown_workload",
            Self::TooMany => "too_many",
        }
    }
}

impl DnsMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let buckets: fn() -> Histogram = || Histogram::new(BUCKETS);
        let metrics = Self {
            requests: Bounded::default(),
            upstream_requests: Bounded::default(),
            upstream_failures: Bounded::default(),
            upstream_duration: Bounded::of(Family::new_with_constructor(buckets)),
            on_demand: Bounded::default(),
            refused: Family::default(),
        };
        registry.register(
            "istio_dns_requests",
            "DNS queries of the pods of this node",
            metrics.requests.family.clone(),
        );
        registry.register(
            "istio_dns_upstream_requests",
            "DNS queries that were passed on to the resolver that was asked",
            metrics.upstream_requests.family.clone(),
        );
        registry.register(
            "istio_dns_upstream_failures",
            "DNS queries that were passed on and not answered",
            metrics.upstream_failures.family.clone(),
        );
        registry.register(
            "istio_dns_upstream_request_duration_seconds",
            "How long resolvers took",
            metrics.upstream_duration.family.clone(),
        );
        registry.register(
            "istio_on_demand_dns",
            "Names of backends that were resolved because somebody called them",
            metrics.on_demand.family.clone(),
        );
        registry.register(
            "ztunnel_dns_refused",
            "DNS queries that were neither answered nor passed on, by why",
            metrics.refused.clone(),
        );
        metrics
    }

    /// A query came.
    pub fn asked(&self, query: &DnsQuery) {
        self.requests.with(&query.0, Counter::inc);
    }

    /// A query is passed on.
    pub fn forwarded(&self, query: &DnsQuery) {
        self.upstream_requests.with(&query.0, Counter::inc);
    }

    /// What was passed on has come to an end, well or not.
    pub fn answered(&self, query: &DnsQuery, after: Duration, well: bool) {
        let seconds = after.as_secs_f64();
        self.upstream_duration
            .with(&query.0, |histogram| histogram.observe(seconds));
        if !well {
            self.upstream_failures.with(&query.0, Counter::inc);
        }
    }

    /// A query was neither answered nor passed on.
    pub fn refused(&self, reason: DnsRefusal) {
        let reason = reason.label();
        self.refused.get_or_create(&Refusals { reason }).inc();
    }

    /// A connection needs the address of a backend that has a name.
    pub fn on_demand(&self, source: &Workload, hostname: &Arc<str>) {
        let app = value(Some(&source.canonical_name));
        let version = value(Some(&source.canonical_revision));
        let labels = OnDemand {
            source_workload: value(Some(&source.workload_name)),
            source_canonical_service: app.clone(),
            source_canonical_revision: version.clone(),
            source_workload_namespace: value(Some(&source.namespace)),
            source_principal: source.identity.as_str().into(),
            source_app: app,
            source_version: version,
            source_cluster: value(Some(&source.cluster_id)),
            hostname: value(Some(hostname)),
        };
        self.on_demand.with(&labels, Counter::inc);
    }
}

fn value(text: Option<&Arc<str>>) -> Arc<str> {
    match text {
        Some(text) if !text.is_empty() => text.clone(),
        _ => UNKNOWN.into(),
    }
}

/// The name of a type in small letters. Whoever asks must not make labels as he likes: what is
/// hardly ever asked for is one.
const fn mnemonic(kind: u16) -> &'static str {
    match kind {
        1 => "a",
        2 => "ns",
        5 => "cname",
        6 => "soa",
        12 => "ptr",
        15 => "mx",
        16 => "txt",
        28 => "aaaa",
        33 => "srv",
        35 => "naptr",
        43 => "ds",
        48 => "dnskey",
        64 => "svcb",
        65 => "https",
        255 => "any",
        257 => "caa",
        _ => "other",
    }
}

/// Labels that can say that nothing is known.
trait Unknown {
    fn unknown() -> Self;
}

impl Unknown for Asked {
    fn unknown() -> Self {
        Self {
            request_query_type: UNKNOWN,
            request_protocol: UNKNOWN,
            source_canonical_service: UNKNOWN.into(),
            source_canonical_revision: UNKNOWN.into(),
        }
    }
}

impl Unknown for OnDemand {
    fn unknown() -> Self {
        let unknown: Arc<str> = UNKNOWN.into();
        Self {
            source_workload: unknown.clone(),
            source_canonical_service: unknown.clone(),
            source_canonical_revision: unknown.clone(),
            source_workload_namespace: unknown.clone(),
            source_principal: unknown.clone(),
            source_app: unknown.clone(),
            source_version: unknown.clone(),
            source_cluster: unknown.clone(),
            hostname: unknown,
        }
    }
}

/// A family that stops to grow.
#[derive(Debug)]
struct Bounded<L, M, C = fn() -> M> {
    family: Family<L, M, C>,
    known: Mutex<HashSet<L>>,
}

impl<L, M: Default> Default for Bounded<L, M>
where
    L: Clone + Hash + Eq,
{
    fn default() -> Self {
        Self::of(Family::new_with_constructor(M::default as fn() -> M))
    }
}

impl<L: Clone + Hash + Eq, M, C> Bounded<L, M, C> {
    fn of(family: Family<L, M, C>) -> Self {
        Self {
            family,
            known: Mutex::default(),
        }
    }
}

impl<L: Clone + Hash + Eq + Unknown, M: Clone, C: MetricConstructor<M>> Bounded<L, M, C> {
    /// Counts on the metric of these labels. What is known takes no lock but the family's.
    fn with<T>(&self, labels: &L, count: impl FnOnce(&M) -> T) {
        if let Some(metric) = self.family.get(labels) {
            count(&metric);
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MOST_SERIES {
            known.insert(labels.clone());
            count(&self.family.get_or_create(labels));
        } else {
            count(&self.family.get_or_create(&L::unknown()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_do_not_grow_for_ever() {
        let counted = Bounded::<Asked, Counter>::default();
        for number in 0..MOST_SERIES + 5 {
            let mut workload = Workload::new("uid", "web", "shop", "web").unwrap();
            workload.canonical_name = format!("app-{number}").into();
            let DnsQuery(labels) = DnsQuery::new(Some(1), "udp", Some(&workload));
            counted.with(&labels, Counter::inc);
        }
        assert_eq!(counted.known.lock().unwrap().len(), MOST_SERIES);
        let rest = counted.family.get_or_create(&Asked::unknown()).get();
        assert_eq!(rest, 5);
    }
}
