//! How the pods' connections are captured: by kernel programs or by redirection rules.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};

use mesh::yaml;

/// How connections are captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Capture {
    /// The mechanism.
    pub by: CaptureBy,
    /// Where programs, links and maps are pinned, in a BPF file system.
    pub bpf_directory: PathBuf,
    /// The cgroup whose processes are subject to capture; `None` means the root of cgroup v2.
    pub cgroup: Option<PathBuf>,
    /// The mark of the proxy's own sockets.
    pub mark: u32,
    /// Destination ports of outbound connections that are never captured.
    pub exempt_ports: Vec<u16>,
    /// Destinations of outbound connections that are never captured.
    pub exempt_cidrs: Vec<IpNet>,
    /// Sources of inbound connections that are never captured.
    pub exempt_sources: Vec<IpNet>,
    /// How many fast-path entries of each kind the kernel holds.
    pub verdicts: u32,
}

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

impl Default for Capture {
    fn default() -> Self {
        // The addresses that kubelet's probes come from in ambient mode.
        let probe_v4 = IpAddr::V4(Ipv4Addr::new(169, 254, 7, 127));
        let probe_v6 = IpAddr::V6(Ipv6Addr::new(
            0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff,
        ));
        Self {
            by: CaptureBy::default(),
            bpf_directory: PathBuf::from("/sys/fs/bpf/ztunnel"),
            cgroup: None,
            mark: 1337,
            exempt_ports: Vec::new(),
            exempt_cidrs: Vec::new(),
            exempt_sources: vec![probe_v4.into(), probe_v6.into()],
            verdicts: 16_384,
        }
    }
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
