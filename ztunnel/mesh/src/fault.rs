//! Whose fault a failure is. Every error of the proxy answers this question, so that a failed
//! connection is counted against the right party and a log line says where to look.

use serde::Serialize;

/// The party that has to change something before the same thing can succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// Whoever opened the connection.
    Downstream,
    /// Whoever was called.
    Upstream,
    /// The description of the mesh: a local file, a control plane.
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
