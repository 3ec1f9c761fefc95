//! The kinds of work, their rows, and the arguments of their clients.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::machine::Usage;
use super::rows::{Better, RowKind};

/// The CPUs of client and server in the pinned ping-pong.
pub(super) const CLIENT_CPU: usize = 0;
pub(super) const SERVER_CPU: usize = 1;

/// The size of small writes, in bytes.
const SMALL: usize = 16 << 10;

/// The work of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Bulk(usize),
    Reverse,
    Http(usize),
    /// A bulk transfer on one connection in writes of [`SMALL`] bytes.
    SmallWrites,
    /// New connections, this many at a time.
    Connect(usize),
    PingPong(Placement),
}

/// Whether client and server are pinned to a CPU each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    Pinned,
    Free,
}

/// The servers of the work; each listens on its own port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Sink,
    Source,
    Http,
    Echo,
    PinnedEcho,
}

impl Service {
    pub(super) const ALL: [Self; 5] = [
        Self::Sink,
        Self::Source,
        Self::Http,
        Self::Echo,
        Self::PinnedEcho,
    ];

    pub(super) fn port(self) -> u16 {
        match self {
            Self::Sink => 9000,
            Self::Source => 9001,
            Self::Http => 8080,
            Self::Echo => 9002,
            Self::PinnedEcho => 9003,
        }
    }

    /// The name of the kind in the program `traffic`.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Sink => "sink",
            Self::Source => "source",
            Self::Http => "http",
            Self::Echo | Self::PinnedEcho => "echo",
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bulk(count) => write!(formatter, "bulk, {count} connections"),
            Self::Reverse => write!(formatter, "bulk from server to client"),
            Self::Http(count) => write!(formatter, "HTTP keep-alive, {count} connections"),
            Self::SmallWrites => write!(formatter, "bulk in writes of 16 KiB"),
            Self::Connect(count) => write!(formatter, "new connections, {count} at a time"),
            Self::PingPong(Placement::Pinned) => write!(formatter, "ping-pong, pinned"),
            Self::PingPong(Placement::Free) => write!(formatter, "ping-pong, not pinned"),
        }
    }
}

const fn row(name: &'static str, unit: &'static str, better: Better) -> RowKind {
    RowKind { name, unit, better }
}

impl Work {
    pub(super) fn service(self) -> Service {
        match self {
            Self::Bulk(_) | Self::SmallWrites => Service::Sink,
            Self::Reverse => Service::Source,
            Self::Http(_) | Self::Connect(_) => Service::Http,
            Self::PingPong(Placement::Pinned) => Service::PinnedEcho,
            Self::PingPong(Placement::Free) => Service::Echo,
        }
    }

    /// The arguments of the program `traffic`, without the address.
    pub(super) fn arguments(self, length: Duration) -> Vec<String> {
        let (command, connections) = match self {
            Self::Bulk(count) => ("bulk", count),
            Self::Reverse | Self::SmallWrites => ("bulk", 1),
            Self::Http(count) => ("http", count),
            Self::Connect(count) => ("connect", count),
            Self::PingPong(_) => ("pingpong", 1),
        };
        let mut arguments = vec![
            command.to_owned(),
            "--connections".to_owned(),
            connections.to_string(),
            "--seconds".to_owned(),
            length.as_secs_f64().to_string(),
        ];
        match self {
            Self::Reverse => arguments.push("--reverse".to_owned()),
            Self::SmallWrites => {
                arguments.extend(["--chunk".to_owned(), SMALL.to_string()]);
            }
            Self::PingPong(Placement::Pinned) => {
                arguments.extend(["--cpu".to_owned(), CLIENT_CPU.to_string()]);
            }
            _ => {}
        }
        arguments
    }

    /// The rows of a sample of this work, in the order of [`Self::values`].
    pub(super) fn rows(self) -> Vec<RowKind> {
        use Better::{Higher, Lower};
        match self {
            Self::Bulk(1) => vec![
                row("bulk_1", "Gbit/s", Higher),
                row("cpu_s_per_gb", "s", Lower),
                row("machine_cpu_s_per_gb", "s", Lower),
            ],
            Self::Bulk(_) => vec![row("bulk_8", "Gbit/s", Higher)],
            Self::Reverse => vec![row("reverse_1", "Gbit/s", Higher)],
            Self::Http(1) => {
                vec![
                    row("http_1", "requests/s", Higher),
                    row("http_1_p50_us", "µs", Lower),
                    row("http_1_p99_us", "µs", Lower),
                ]
            }
            Self::Http(16) => vec![
                row("http_16", "requests/s", Higher),
                row("http_16_p50_us", "µs", Lower),
                row("http_16_p99_us", "µs", Lower),
                row("cpu_s_per_100k_requests", "s", Lower),
                row("machine_cpu_s_per_100k_requests", "s", Lower),
            ],
            Self::Http(_) => vec![
                row("http_64", "requests/s", Higher),
                row("http_64_p50_us", "µs", Lower),
                row("http_64_p99_us", "µs", Lower),
                row("cpu_s_per_100k_requests_64", "s", Lower),
                row("machine_cpu_s_per_100k_requests_64", "s", Lower),
            ],
            Self::SmallWrites => vec![row("writes_16k", "Gbit/s", Higher)],
            Self::Connect(1) => vec![
                row("connect_1", "connections/s", Higher),
                row("connect_1_p50_us", "µs", Lower),
            ],
            Self::Connect(_) => vec![
                row("connect_16", "connections/s", Higher),
                row("connect_16_p99_us", "µs", Lower),
                row("cpu_s_per_100k_connections_16", "s", Lower),
                row("machine_cpu_s_per_100k_connections_16", "s", Lower),
            ],
            Self::PingPong(Placement::Pinned) => {
                vec![
                    row("pingpong_p50_us", "µs", Lower),
                    row("pingpong_p99_us", "µs", Lower),
                ]
            }
            Self::PingPong(Placement::Free) => vec![
                row("pingpong_unpinned_p50_us", "µs", Lower),
                row("pingpong_unpinned_p99_us", "µs", Lower),
            ],
        }
    }

    /// One value for each of [`Self::rows`], from the client's report and the CPU times.
    pub(super) fn values(self, report: &Value, usage: &Usage) -> Result<Vec<f64>> {
        let number = |path: &str| {
            report
                .pointer(path)
                .and_then(Value::as_f64)
                .with_context(|| format!("{path} of {report}"))
        };
        let p50 = || number("/latency/p50_us");
        let p99 = || number("/latency/p99_us");
        Ok(match self {
            Self::Bulk(1) => {
                let gigabytes = number("/bytes")? / 1e9;
                vec![
                    number("/gbit_per_second")?,
                    usage.proxies / gigabytes,
                    usage.machine / gigabytes,
                ]
            }
            Self::Bulk(_) | Self::Reverse | Self::SmallWrites => {
                vec![number("/gbit_per_second")?]
            }
            Self::Http(1) => vec![number("/per_second")?, p50()?, p99()?],
            Self::Http(_) => {
                let bundles = number("/requests")? / 1e5;
                vec![
                    number("/per_second")?,
                    p50()?,
                    p99()?,
                    usage.proxies / bundles,
                    usage.machine / bundles,
                ]
            }
            Self::Connect(1) => vec![number("/per_second")?, p50()?],
            Self::Connect(_) => {
                let bundles = number("/connections")? / 1e5;
                vec![
                    number("/per_second")?,
                    p99()?,
                    usage.proxies / bundles,
                    usage.machine / bundles,
                ]
            }
            Self::PingPong(_) => vec![p50()?, p99()?],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::MeasuredPath;

    #[test]
    fn each_work_has_a_value_for_each_of_its_rows() {
        let report = serde_json::json!({
            "bytes": 1e9, "gbit_per_second": 8.0, "requests": 1e5, "connections": 1e5,
            "per_second": 1.0, "latency": { "p50_us": 1.0, "p99_us": 2.0 },
        });
        let usage = Usage {
            proxies: 0.5,
            machine: 2.0,
            ..Usage::default()
        };
        for path in MeasuredPath::ALL {
            let mut names = Vec::new();
            for work in path.works() {
                let rows = work.rows();
                let values = work.values(&report, &usage).unwrap();
                assert_eq!(values.len(), rows.len(), "{work}");
                names.extend(rows.into_iter().map(|row| row.name));
            }
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(
                names.len(),
                count,
                "two rows of {path:?} have the same name"
            );
        }
    }
}
