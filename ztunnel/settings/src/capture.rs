//! How the pods' connections are captured: by kernel programs or by redirection rules.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use super::Capture;
use mesh::yaml;

/// The mechanism that redirects a pod's connections to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureBy {
    /// The kernel programs. If the container does not see the host's cgroups or may not load
    /// programs, and a node agent is configured: the rules that the agent puts into the pods.
    #[default]
    Auto,
    /// The kernel programs, or the proxy does not start.
    Programs,
    /// The redirection rules that another component, usually istio-cni, puts into the pods. No
    /// connection takes the fast path then.
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
    /// A warning for each exemption that is configured and has no effect, because rules capture.
    #[must_use]
    pub fn ignored_by_rules(&self) -> Vec<String> {
        let initial = Self::default();
        [
            ("exemptPorts", self.exempt_ports != initial.exempt_ports),
            ("exemptCidrs", self.exempt_cidrs != initial.exempt_cidrs),
            (
                "exemptSources",
                self.exempt_sources != initial.exempt_sources,
            ),
        ]
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| {
            format!(
                "capture.{key}: has no effect where rules capture (capture.by): the rules decide \
                 what is exempt"
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
