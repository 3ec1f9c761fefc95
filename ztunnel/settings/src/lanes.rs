//! The settings of the fast path: whether pods of one node use it or tunnels, whether the two
//! sockets of a fast-path connection are joined, and exceptions for single workloads.

use std::fmt;

use foldhash::HashMap;
use serde::{Deserialize, Deserializer, Serialize};

use super::environment::Environment;
use super::file::File;
use super::{ConfigError, Settings};
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
pub struct LaneOverride {
    /// The workload; it may be unknown to the mesh.
    pub workload: Uid,
    /// Its path to pods of its node; `None` means that of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_node: Option<SameNode>,
    /// Whether its connections are joined; `None` means the value of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acceleration: Option<Acceleration>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct OverrideEntry {
    workload: String,
    same_node: Option<SameNode>,
    acceleration: Option<Acceleration>,
}

/// Applies the file and the environment to the defaults.
pub(super) fn lay(settings: &mut Settings, file: &File, env: &Environment) {
    let same_node = env.same_node.or(file.same_node);
    settings.same_node = same_node.unwrap_or(settings.same_node);
    let acceleration = env.acceleration.or(file.acceleration);
    settings.acceleration = acceleration.unwrap_or(settings.acceleration);
    let verdicts = env.verdicts.or(file.capture.verdicts);
    settings.capture.verdicts = verdicts.unwrap_or(settings.capture.verdicts);
    let overrides = file.overrides.iter().map(|entry| LaneOverride {
        workload: Uid(entry.workload.as_str().into()),
        same_node: entry.same_node,
        acceleration: entry.acceleration,
    });
    settings.overrides = overrides.collect();
}

/// Checks that each workload has one entry; warns about an entry that changes nothing.
pub(super) fn check(settings: &mut Settings) -> Result<(), ConfigError> {
    let mut seen: HashMap<&Uid, usize> = HashMap::default();
    for (at, entry) in settings.overrides.iter().enumerate() {
        let key = format!("overrides[{at}].workload");
        if entry.workload.0.is_empty() {
            let problem = "must not be empty".to_owned();
            return Err(ConfigError::Contradiction { key, problem });
        }
        if let Some(first) = seen.insert(&entry.workload, at) {
            return Err(ConfigError::Duplicate {
                key,
                found: entry.workload.to_string(),
                first: format!("overrides[{first}].workload"),
            });
        }
        if entry.same_node.is_none() && entry.acceleration.is_none() {
            settings.warnings.push(format!(
                "overrides[{at}]: changes nothing; it sets neither sameNode nor acceleration"
            ));
        }
    }
    Ok(())
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
