//! Latencies of many operations, in microseconds.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The largest recorded latency, in nanoseconds: one minute.
const LONGEST: u64 = 60_000_000_000;

/// Collects latencies.
pub struct Recorder(Histogram<u64>);

/// The collected latencies, in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say which percentile")]
pub struct Latency {
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    pub mean_us: f64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// A recorder without latencies.
    #[must_use]
    pub fn new() -> Self {
        match Histogram::new_with_max(LONGEST, 3) {
            Ok(histogram) => Self(histogram),
            Err(error) => unreachable!("a maximum and three significant digits are valid: {error}"),
        }
    }

    /// Records one operation.
    pub fn record(&mut self, latency: Duration) {
        self.0
            .saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The number of recorded operations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Adds the latencies of another recorder.
    pub fn merge(&mut self, other: &Self) {
        self.0 += &other.0;
    }

    /// The percentiles.
    #[must_use]
    pub fn summary(&self) -> Latency {
        let at = |quantile: f64| micros(self.0.value_at_quantile(quantile));
        Latency {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            max_us: micros(self.0.max()),
            mean_us: self.0.mean() / 1000.0,
        }
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "latencies are far below 2^52 ns"
)]
fn micros(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_recorded() {
        let mut recorder = Recorder::new();
        for micros in 1..=100 {
            recorder.record(Duration::from_micros(micros));
        }
        recorder.record(Duration::from_secs(3600));
        let summary = recorder.summary();
        assert!((summary.p50_us - 51.0).abs() < 1.0, "{summary:?}");
        assert!(summary.max_us > 59e6, "{summary:?}");
        assert_eq!(recorder.count(), 101);
    }
}
