//! The settings of the fast path: whether pods of one node use it or tunnels, whether the two
//! sockets of a fast-path connection are joined, and exceptions for single workloads.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use mesh::{Uid, yaml};

/// The path between pods of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SameNode {
    /// The fast path: plain TCP through the kernel, if policy allows the connection.
    #[default]
    Direct,
    /// The tunnel path, as between nodes.
    Tunnel,
}

/// Whether the two sockets of a fast-path connection are joined by a sockmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    /// If the kernel passes the self-test at the start.
    #[default]
    Auto,
    /// Even if the self-test fails.
    On,
    /// Never.
    Off,
}

/// The exception for one workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathOverride {
    /// The workload; it may be unknown to the mesh.
    pub workload: Uid,
    /// Its path to pods of its node; `None` means that of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_node: Option<SameNode>,
    /// Whether its connections are joined; `None` means the value of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acceleration: Option<Acceleration>,
}

impl SameNode {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "direct" => Ok(Self::Direct),
            "tunnel" => Ok(Self::Tunnel),
            _ => Err(format!("{text:?} is not one of direct, tunnel")),
        }
    }
}

impl Acceleration {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(format!("{text:?} is not one of auto, on, off")),
        }
    }
}

impl fmt::Display for SameNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Tunnel => "tunnel",
        })
    }
}

impl fmt::Display for Acceleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

impl<'de> Deserialize<'de> for SameNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        yaml::parsed(deserializer, "direct or tunnel", Self::parse)
    }
}

impl<'de> Deserialize<'de> for Acceleration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        yaml::parsed(deserializer, "auto, on or off", Self::parse)
    }
}
