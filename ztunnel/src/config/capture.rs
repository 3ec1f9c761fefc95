//! Who takes the pods' connections to the proxy.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::mesh::yaml;

/// What takes a pod's connections to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureBy {
    /// The kernel programs. Where the container sees neither the host's cgroups nor may load
    /// programs, and there is a node agent, the rules that it puts into its pods.
    #[default]
    Auto,
    /// The kernel programs, or the proxy does not start.
    Programs,
    /// The redirection rules that somebody else, as a rule istio-cni, puts into the pods. No
    /// connection is carried by the kernel alone then.
    Rules,
}

impl CaptureBy {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "programs" => Ok(Self::Programs),
            "rules" => Ok(Self::Rules),
            _ => Err(format!("{text:?} is not one of auto, programs, rules")),
        }
    }
}

impl fmt::Display for CaptureBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Programs => "programs",
            Self::Rules => "rules",
        })
    }
}

impl<'de> Deserialize<'de> for CaptureBy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        yaml::parsed(deserializer, "auto, programs or rules", Self::parse)
    }
}
