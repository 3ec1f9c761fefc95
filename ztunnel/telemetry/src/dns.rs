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

/// The most sets of labels of one metric; further ones are counted as unknown.
const SERIES_LIMIT: usize = 2000;

/// The upper bounds of the histogram's buckets, in seconds.
const BUCKETS: [f64; 6] = [0.001, 0.005, 0.01, 0.1, 1.0, 5.0];

/// The metrics of the DNS proxy.
#[derive(Debug)]
pub struct DnsMetrics {
    requests: Bounded<QueryLabels, Counter>,
    upstream_requests: Bounded<QueryLabels, Counter>,
    upstream_failures: Bounded<QueryLabels, Counter>,
    upstream_duration: Bounded<QueryLabels, Histogram, fn() -> Histogram>,
    on_demand: Bounded<OnDemand, Counter>,
    refused: Family<Refusals, Counter>,
}

/// The labels of a query: its type, its protocol and its source.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueryLabels {
    request_query_type: &'static str,
    request_protocol: &'static str,
    source_canonical_service: Arc<str>,
    source_canonical_revision: Arc<str>,
}

/// The labels of an on-demand resolution: its source and the name.
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

/// The labels of one query, built once for all of its metrics.
#[derive(Debug, Clone)]
pub struct DnsQuery(QueryLabels);

impl DnsQuery {
    /// A query for records of a type, over a protocol (`udp`, `tcp`), from a workload if it is known.
    #[must_use]
    pub fn new(kind: Option<u16>, protocol: &'static str, source: Option<&Workload>) -> Self {
        Self(QueryLabels {
            request_query_type: kind.map_or(UNKNOWN, mnemonic),
            request_protocol: protocol,
            source_canonical_service: value(source.map(|source| &source.canonical_name)),
            source_canonical_revision: value(source.map(|source| &source.canonical_revision)),
        })
    }
}

/// Why a query was neither answered nor forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsRefusal {
    /// The message is not a query.
    Malformed,
    /// The resolver that the application addressed is unknown.
    UnknownResolver,
    /// The mesh has no workload for the pod.
    UnknownWorkload,
    /// The pod has too many queries in progress.
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
            "DNS queries that were forwarded to the pod's resolver",
            metrics.upstream_requests.family.clone(),
        );
        registry.register(
            "istio_dns_upstream_failures",
            "DNS queries that were forwarded and not answered",
            metrics.upstream_failures.family.clone(),
        );
        registry.register(
            "istio_dns_upstream_request_duration_seconds",
            "Response time of resolvers",
            metrics.upstream_duration.family.clone(),
        );
        registry.register(
            "istio_on_demand_dns",
            "Host names of backends that were resolved when a pod called them",
            metrics.on_demand.family.clone(),
        );
        registry.register(
            "ztunnel_dns_refused",
            "DNS queries that were neither answered nor forwarded, by reason",
            metrics.refused.clone(),
        );
        metrics
    }

    /// Counts a query.
    pub fn asked(&self, query: &DnsQuery) {
        self.requests.with(&query.0, Counter::inc);
    }

    /// Counts a forwarded query.
    pub fn forwarded(&self, query: &DnsQuery) {
        self.upstream_requests.with(&query.0, Counter::inc);
    }

    /// Counts the end of a forwarded query, with its duration and whether it was answered.
    pub fn answered(&self, query: &DnsQuery, after: Duration, success: bool) {
        let seconds = after.as_secs_f64();
        self.upstream_duration
            .with(&query.0, |histogram| histogram.observe(seconds));
        if !success {
            self.upstream_failures.with(&query.0, Counter::inc);
        }
    }

    /// Counts a query that was neither answered nor forwarded.
    pub fn refused(&self, reason: DnsRefusal) {
        let reason = reason.label();
        self.refused.get_or_create(&Refusals { reason }).inc();
    }

    /// Counts the resolution of a backend's host name for a connection.
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

/// The lower-case name of a record type. Rare types share one name, so that clients cannot create
/// labels at will.
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

/// Labels that have a value for unknown sources.
trait Unknown {
    fn unknown() -> Self;
}

impl Unknown for QueryLabels {
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

/// A family of metrics with a bounded number of series.
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
    /// Updates the metric of these labels. Known labels take only the family's lock.
    fn with<T>(&self, labels: &L, count: impl FnOnce(&M) -> T) {
        if let Some(metric) = self.family.get(labels) {
            count(&metric);
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < SERIES_LIMIT {
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
    fn the_number_of_series_is_bounded() {
        let counted = Bounded::<QueryLabels, Counter>::default();
        for number in 0..SERIES_LIMIT + 5 {
            let mut workload = Workload::new("uid", "web", "shop", "web").unwrap();
            workload.canonical_name = format!("app-{number}").into();
            let DnsQuery(labels) = DnsQuery::new(Some(1), "udp", Some(&workload));
            counted.with(&labels, Counter::inc);
        }
        assert_eq!(counted.known.lock().unwrap().len(), SERIES_LIMIT);
        let rest = counted.family.get_or_create(&QueryLabels::unknown()).get();
        assert_eq!(rest, 5);
    }
}
