//! The ways that are measured: where each one's ends are, what is done on it, and how good it
//! shall be.

use super::Variant;
use super::rows::{Better, Row};
use super::work::{Placement, Work};
use crate::net::{Host, World};
use crate::traffic::Manner;

/// The way of a connection from a pod of node `a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To a pod of another node, through both proxies.
    Tunnel,
    /// To a pod of the same node, through the kernel alone.
    Direct,
    /// The same with the two ends joined; both wait for events.
    Joined,
    /// To a host outside the mesh.
    Outside,
}

/// How good a row shall be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Mesh over plain, at least.
    RatioAtLeast(f64),
    /// Mesh over plain, at most.
    RatioAtMost(f64),
    /// The value with the mesh, at most.
    AtMost(f64),
}

/// As fast as plain, but for the noise.
const AS_PLAIN: f64 = 0.97;
/// No CPU time of the proxies, but for one tick of the clock in a sample.
const NOTHING: f64 = 0.005;

impl Way {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tunnel, Self::Direct, Self::Joined, Self::Outside];

    /// What stands before the names of its rows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Direct => "direct",
            Self::Joined => "joined",
            Self::Outside => "outside",
        }
    }

    /// How clients and servers on it wait, in both variants.
    pub(super) fn manner(self) -> Manner {
        match self {
            Self::Joined => Manner::EventDriven,
            Self::Tunnel | Self::Direct | Self::Outside => Manner::Blocking,
        }
    }

    /// What is done on it.
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

    /// The pod that the clients run in.
    pub(super) fn client(self, world: &World, variant: Variant) -> &Host {
        match (self, variant) {
            // One of its own: what joins its connections joins those with the proxy too.
            (Self::Joined, Variant::Mesh) => world.pod("a", 6),
            (Self::Tunnel | Self::Direct | Self::Outside, Variant::Mesh) => world.pod("a", 0),
            (_, Variant::Plain) => world.pod("a", 1),
        }
    }

    /// The host that the servers run on.
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

    /// How good a row of it shall be, where something was promised.
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
    /// What was reached, what was wanted, and whether that is good enough; nothing for a row
    /// without samples.
    #[must_use]
    pub fn judge(self, row: &Row) -> Option<(f64, String, bool)> {
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
