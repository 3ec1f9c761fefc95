//! Which party caused a failure. Every error of the proxy names it, so that a failed connection is
//! counted against the right party and the log line shows where to look.

use serde::Serialize;

/// The party that has to change something before the same thing can succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// The client that opened the connection.
    Downstream,
    /// The destination.
    Upstream,
    /// The mesh configuration: a local file or a control plane.
    Mesh,
    /// This proxy, its settings or its machine.
    Us,
}

impl Fault {
    /// The name used in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
            Self::Mesh => "mesh",
            Self::Us => "us",
        }
    }
}
