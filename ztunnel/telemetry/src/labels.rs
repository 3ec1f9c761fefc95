//! The labels of the traffic metrics, in the order and with the names of Istio's standard TCP
//! metrics.

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::series::{Reporter, ResponseFlag, SecurityPolicy, SeriesKey};
use mesh::{Identity, Workload};

/// Istio's value for an unknown label.
pub(super) const UNKNOWN: &str = "unknown";

/// The longest label value in bytes. A SPIFFE identity may have 2048 bytes; usual names are much
/// shorter.
const VALUE_LIMIT: usize = 512;

const SOURCE: [&str; 8] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
];

const SERVICE: [&str; 3] = [
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
];

const DESTINATION: [&str; 8] = [
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
];

/// A value; `None` is written as `unknown`.
type Value = Option<Arc<str>>;

/// The labels of one series, without `response_flags`. The texts are shared with the mesh's
/// objects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    reporter: Reporter,
    source: [Value; SOURCE.len()],
    service: [Value; SERVICE.len()],
    destination: [Value; DESTINATION.len()],
    security: SecurityPolicy,
}

impl Labels {
    pub(super) fn of(key: &SeriesKey) -> Self {
        let destination_principal = key
            .destination_principal
            .as_ref()
            .or_else(|| key.destination.as_ref().map(|workload| &workload.identity));
        Self {
            reporter: key.reporter,
            source: workload(key.source.as_deref(), key.source_principal.as_ref()),
            service: key
                .service
                .as_ref()
                .map_or_else(Default::default, |service| {
                    [
                        value(&service.hostname),
                        value(&service.name),
                        value(&service.namespace),
                    ]
                }),
            destination: workload(key.destination.as_deref(), destination_principal),
            security: key.security,
        }
    }
}

/// Values in the order of [`SOURCE`] and [`DESTINATION`].
fn workload(workload: Option<&Workload>, principal: Option<&Identity>) -> [Value; SOURCE.len()] {
    let principal = principal.map(|identity| bounded(identity.as_str()).into());
    let Some(workload) = workload else {
        return [None, None, None, None, principal, None, None, None];
    };
    // Istio's app and version labels are the canonical name and revision under older names.
    let (app, version) = (
        value(&workload.canonical_name),
        value(&workload.canonical_revision),
    );
    [
        value(&workload.workload_name),
        app.clone(),
        version.clone(),
        value(&workload.namespace),
        principal,
        app,
        version,
        value(&workload.cluster_id),
    ]
}

fn value(text: &Arc<str>) -> Value {
    match text.len() {
        0 => None,
        1..=VALUE_LIMIT => Some(text.clone()),
        _ => Some(bounded(text).into()),
    }
}

fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(VALUE_LIMIT)]
}

/// [`Labels`] with the one label that differs between the counters of a series.
#[derive(Debug)]
pub(super) struct Flagged<'a>(pub(super) &'a Labels, pub(super) ResponseFlag);

impl EncodeLabelSet for Flagged<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Flagged(labels, flag) = self;
        let mut put =
            |name: &str, text: &str| EncodeLabel::encode(&(name, text), encoder.encode_label());
        put("reporter", labels.reporter.label())?;
        let values = [&labels.source[..], &labels.service, &labels.destination];
        let names = [&SOURCE[..], &SERVICE, &DESTINATION];
        for (name, value) in names
            .into_iter()
            .flatten()
            .zip(values.into_iter().flatten())
        {
            put(name, value.as_deref().unwrap_or(UNKNOWN))?;
        }
        put("request_protocol", "tcp")?;
        put("response_flags", flag.label())?;
        put("connection_security_policy", labels.security.label())
    }
}
