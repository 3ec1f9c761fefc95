//! Who takes the pods' connections to the proxy.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use super::Capture;
use mesh::yaml;

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

impl Capture {
    /// A warning for each exemption that somebody has asked for and that counts for nothing where rules
    /// capture.
    #[must_use]
    pub fn ignored_by_rules(&self) -> Vec<String> {
        let initial = Self::default();
        [
            ("exemptPorts", self.exempt_ports != initial.exempt_ports),
            ("exemptCidrs", self.exempt_cidrs != initial.exempt_cidrs),
            ("exemptSources", self.exempt_sources != initial.exempt_sources),
        ]
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| {
            format!(
                "capture.{key}: counts for nothing where rules capture (capture.by): what is exempt \
                 then, the rules say"
            )
        })
        .collect()
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
