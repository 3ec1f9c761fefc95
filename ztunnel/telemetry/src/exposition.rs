//! Encodes the series as the `istio_tcp_*` counters.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::labels::{Flagged, Labels};
use super::series::{ResponseFlag, Series};
use super::table::Table;

/// The table of series as a source of metrics.
#[derive(Debug)]
pub(super) struct Exposition(pub(super) Arc<Table>);

/// A metric's name (the encoder appends `_total`), its help text, and a function that reads its
/// sample for a flag from a series, if it has one.
type Family = (
    &'static str,
    &'static str,
    fn(&Series, ResponseFlag) -> Option<u64>,
);

const FAMILIES: [Family; 5] = [
    (
        "istio_tcp_connections_opened",
        "TCP connections that were opened.",
        |series, flag| is_success(flag).then(|| series.opened.get()),
    ),
    (
        "istio_tcp_connections_closed",
        "TCP connections that ended, with or without an error.",
        |series, flag| {
            let failed = series.failures(flag);
            (is_success(flag) || failed > 0).then(|| {
                if is_success(flag) {
                    series.closed.get() + failed
                } else {
                    failed
                }
            })
        },
    ),
    (
        "istio_tcp_connections_failed",
        "TCP connections that were refused or ended with an error.",
        |series, flag| Some(series.failures(flag)).filter(|&failed| failed > 0),
    ),
    (
        "istio_tcp_received_bytes",
        "Bytes from the client to the server.",
        |series, flag| is_success(flag).then(|| series.received_bytes.get()),
    ),
    (
        "istio_tcp_sent_bytes",
        "Bytes from the server to the client.",
        |series, flag| is_success(flag).then(|| series.sent_bytes.get()),
    ),
];

const fn is_success(flag: ResponseFlag) -> bool {
    matches!(flag, ResponseFlag::None)
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        for (name, help, read) in FAMILIES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            self.0.for_each(|labels, series| {
                ResponseFlag::ALL
                    .into_iter()
                    .try_for_each(|flag| match read(series, flag) {
                        Some(value) => sample(&mut metric, labels, flag, value),
                        None => Ok(()),
                    })
            })?;
        }
        Ok(())
    }
}

fn sample(
    metric: &mut MetricEncoder<'_>,
    labels: &Labels,
    flag: ResponseFlag,
    value: u64,
) -> Result<(), fmt::Error> {
    ConstCounter::new(value).encode(metric.encode_family(&Flagged(labels, flag))?)
}
