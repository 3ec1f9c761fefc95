//! The measured paths: the hosts of clients and servers, the kinds of work, and the targets of each.

use super::Variant;
use super::rows::{Better, Row};
use super::work::{Placement, Work};
use crate::net::{Host, World};
use crate::traffic::IoMode;

/// The path of a connection from a pod of node `a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeasuredPath {
    /// To a pod of another node, in a tunnel.
    Tunnel,
    /// To a pod of the same node, on the fast path.
    Direct,
    /// The same with joined sockets; both ends are event-driven.
    Joined,
    /// To a host outside the mesh.
    Outside,
}

/// The target of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// The smallest ratio of mesh to plain.
    RatioAtLeast(f64),
    /// The largest ratio of mesh to plain.
    RatioAtMost(f64),
    /// The largest value with the mesh.
    AtMost(f64),
}

/// The smallest ratio for "as fast as plain", below 1 because of noise.
const AS_PLAIN: f64 = 0.97;
/// The largest CPU time for "no work of the proxies": one clock tick in a sample.
const NOTHING: f64 = 0.005;

impl MeasuredPath {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tunnel, Self::Direct, Self::Joined, Self::Outside];

    /// The prefix of the names of its rows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Direct => "direct",
            Self::Joined => "joined",
            Self::Outside => "outside",
        }
    }

    /// The I/O mode of clients and servers in both variants.
    pub(super) fn io_mode(self) -> IoMode {
        match self {
            Self::Joined => IoMode::EventDriven,
            Self::Tunnel | Self::Direct | Self::Outside => IoMode::Blocking,
        }
    }

    /// The kinds of work on this path.
    pub(super) fn works(self) -> &'static [Work] {
        const TUNNEL: &[Work] = &[
            Work::Bulk(1),
            Work::Bulk(8),
            Work::Reverse,
            Work::Http(1),
            Work::Http(16),
            Work::Http(64),
            Work::Connect(16),
            Work::PingPong(Placement::Pinned),
            Work::PingPong(Placement::Free),
        ];
        const DIRECT: &[Work] = &[
            Work::Bulk(1),
            Work::Bulk(8),
            Work::Http(1),
            Work::Http(16),
            Work::Http(64),
            Work::Connect(1),
            Work::Connect(16),
            Work::PingPong(Placement::Pinned),
            Work::PingPong(Placement::Free),
        ];
        const JOINED: &[Work] = &[
            Work::Bulk(1),
            Work::SmallWrites,
            Work::PingPong(Placement::Pinned),
            Work::PingPong(Placement::Free),
        ];
        match self {
            Self::Tunnel => TUNNEL,
            Self::Direct | Self::Outside => DIRECT,
            Self::Joined => JOINED,
        }
    }

    /// The pod of the clients.
    pub(super) fn client(self, world: &World, variant: Variant) -> &Host {
        match (self, variant) {
            // A separate pod, because acceleration joins its connections with the proxy, too.
            (Self::Joined, Variant::Mesh) => world.pod("a", 6),
            (Self::Tunnel | Self::Direct | Self::Outside, Variant::Mesh) => world.pod("a", 0),
            (_, Variant::Plain) => world.pod("a", 1),
        }
    }

    /// The host of the servers.
    pub(super) fn server(self, world: &World, variant: Variant) -> &Host {
        match (self, variant) {
            (Self::Tunnel, Variant::Mesh) => world.pod("b", 0),
            (Self::Tunnel, Variant::Plain) => world.pod("b", 1),
            (Self::Direct, Variant::Mesh) => world.pod("a", 2),
            (Self::Direct, Variant::Plain) => world.pod("a", 3),
            (Self::Joined, Variant::Mesh) => world.pod("a", 4),
            (Self::Joined, Variant::Plain) => world.pod("a", 5),
            (Self::Outside, _) => world.outside(),
        }
    }

    /// The target of a row; `None` for a row without target.
    #[must_use]
    pub fn target(self, row: &str, better: Better) -> Option<Target> {
        match (self, row) {
            (Self::Joined, "bulk_1") => Some(Target::RatioAtLeast(1.3)),
            (Self::Joined, "writes_16k") => Some(Target::RatioAtLeast(2.0)),
            (Self::Joined, "pingpong_p50_us") => Some(Target::RatioAtMost(0.85)),
            (Self::Direct | Self::Outside | Self::Joined, "cpu_s_per_gb") => {
                Some(Target::AtMost(NOTHING))
            }
            (Self::Direct | Self::Outside, _) if better == Better::Higher => {
                Some(Target::RatioAtLeast(AS_PLAIN))
            }
            (Self::Direct | Self::Outside, "pingpong_p50_us") => {
                Some(Target::RatioAtMost(1.0 / AS_PLAIN))
            }
            _ => None,
        }
    }
}

impl Target {
    /// The reached value, the target in words, and whether the target is met; `None` for a row without
    /// samples.
    #[must_use]
    pub fn evaluate(self, row: &Row) -> Option<(f64, String, bool)> {
        Some(match self {
            Self::RatioAtLeast(wanted) => {
                let ratio = row.ratio()?;
                (
                    ratio,
                    format!("at least {wanted:.2} of plain"),
                    ratio >= wanted,
                )
            }
            Self::RatioAtMost(wanted) => {
                let ratio = row.ratio()?;
                (
                    ratio,
                    format!("at most {wanted:.2} of plain"),
                    ratio <= wanted,
                )
            }
            Self::AtMost(wanted) => {
                let value = row.mesh_median()?;
                let unit = row.unit;
                (value, format!("at most {wanted} {unit}"), value <= wanted)
            }
        })
    }
}
