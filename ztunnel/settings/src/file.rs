//! The structure of the settings file: every key is optional, unknown keys are errors.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use super::units::Span;
use super::{Acceleration, Bytes, CaptureBy, LogFormat, SameNode};
use mesh::local::{PolicyEntry, ServiceEntry, WorkloadEntry};
use mesh::yaml;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) node: Option<String>,
    pub(super) cluster_id: Option<String>,
    pub(super) network: Option<String>,
    pub(super) trust_domain: Option<String>,
    pub(super) mode: Option<ModeName>,
    pub(super) workload: Option<String>,
    pub(super) mesh_file: Option<PathBuf>,
    pub(super) pods: Vec<PodEntry>,
    pub(super) node_agent: NodeAgentSection,
    pub(super) workloads: Vec<WorkloadEntry>,
    pub(super) services: Vec<ServiceEntry>,
    pub(super) policies: Vec<PolicyEntry>,
    pub(super) ca: CaSection,
    pub(super) xds: XdsSection,
    pub(super) crl: Option<PathBuf>,
    pub(super) admin: ListenSection,
    pub(super) metrics: ListenSection,
    pub(super) readiness: ListenSection,
    pub(super) capture: CaptureSection,
    pub(super) dns: DnsSection,
    pub(super) new_pods: NewPodsSection,
    pub(super) same_node: Option<SameNode>,
    pub(super) acceleration: Option<Acceleration>,
    pub(super) overrides: Vec<OverrideEntry>,
    pub(super) hbone: HboneSection,
    pub(super) keepalive: KeepaliveSection,
    pub(super) socks5: Socks5Section,
    pub(super) application_tunnel: ApplicationTunnelSection,
    pub(super) threads: Option<usize>,
    pub(super) log: LogSection,
    pub(super) termination: TerminationSection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ModeName {
    Shared,
    Dedicated,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PodEntry {
    pub(super) workload: String,
    pub(super) netns: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct NodeAgentSection {
    pub(super) socket: Option<PathBuf>,
}

/// The settings file's section for the discovery service.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct XdsSection {
    pub(super) address: Option<String>,
    pub(super) root_certificate: Option<PathBuf>,
    pub(super) hostname: Option<String>,
    pub(super) token: Option<PathBuf>,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) on_demand: Option<bool>,
}

/// The settings file's section for the certificate authority.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct CaSection {
    pub(super) local: Option<LocalSection>,
    pub(super) address: Option<String>,
    pub(super) root_certificate: Option<PathBuf>,
    pub(super) hostname: Option<String>,
    pub(super) token: Option<PathBuf>,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) mesh_roots: Option<PathBuf>,
    pub(super) leaf_ttl: Option<Span>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct LocalSection {
    pub(super) directory: PathBuf,
    pub(super) leaf_ttl: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ListenSection {
    pub(super) address: Option<Listen>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct CaptureSection {
    pub(super) by: Option<CaptureBy>,
    pub(super) bpf_directory: Option<PathBuf>,
    pub(super) cgroup: Option<PathBuf>,
    pub(super) mark: Option<u32>,
    pub(super) exempt_ports: Option<Vec<u16>>,
    pub(super) exempt_cidrs: Option<Vec<Range>>,
    pub(super) exempt_sources: Option<Vec<Range>>,
    pub(super) verdicts: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DnsSection {
    pub(super) enabled: Option<bool>,
    pub(super) timeout: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct NewPodsSection {
    pub(super) workload_wait: Option<Span>,
}

/// An address and a port to listen on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listen(pub(super) SocketAddr);

/// An address range; a bare address is a range of one address.
#[derive(Debug)]
pub(super) struct Range(pub(super) IpNet);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct OverrideEntry {
    pub(super) workload: String,
    pub(super) same_node: Option<SameNode>,
    pub(super) acceleration: Option<Acceleration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct HboneSection {
    pub(super) stream_window: Option<Bytes>,
    pub(super) connection_window: Option<Bytes>,
    pub(super) max_frame: Option<Bytes>,
    pub(super) send_buffer: Option<Bytes>,
    pub(super) max_streams_per_connection: Option<u32>,
    pub(super) max_concurrent_streams: Option<u32>,
    pub(super) header_list_max: Option<Bytes>,
    pub(super) idle_release: Option<Span>,
    pub(super) server_idle: Option<Span>,
    pub(super) connect_timeout: Option<Span>,
    pub(super) handshake_timeout: Option<Span>,
    pub(super) response_timeout: Option<Span>,
    pub(super) ping_interval: Option<Span>,
    pub(super) ping_timeout: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct KeepaliveSection {
    pub(super) enabled: Option<bool>,
    pub(super) time: Option<Span>,
    pub(super) interval: Option<Span>,
    pub(super) retries: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Socks5Section {
    pub(super) enabled: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ApplicationTunnelSection {
    pub(super) localhost: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct LogSection {
    pub(super) filter: Option<String>,
    pub(super) format: Option<LogFormat>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct TerminationSection {
    pub(super) deadline: Option<Span>,
}

impl File {
    /// Whether the file describes the mesh.
    pub(super) fn describes_the_mesh(&self) -> bool {
        self.mesh_file.is_some()
            || !self.workloads.is_empty()
            || !self.services.is_empty()
            || !self.policies.is_empty()
    }
}

impl ModeName {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "shared" => Ok(Self::Shared),
            "dedicated" => Ok(Self::Dedicated),
            _ => Err(format!("{text:?} is not one of shared, dedicated")),
        }
    }
}

impl LogFormat {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" | "plain" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is not one of text, json")),
        }
    }
}

impl<'de> Deserialize<'de> for ModeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        yaml::parsed(deserializer, "shared or dedicated", Self::parse)
    }
}

impl<'de> Deserialize<'de> for LogFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        yaml::parsed(deserializer, "text or json", Self::parse)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "an address and a port, such as 127.0.0.1:15000 or [::]:15020";
        yaml::parsed(deserializer, expected, |text| {
            let address = text.parse().map(Self);
            address.map_err(|_no_address| format!("{text:?} is not {expected}"))
        })
    }
}

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "an address range such as 10.0.0.0/8 or an address";
        yaml::parsed(deserializer, expected, |text| {
            let address = text.parse().map(|address: IpAddr| Self(address.into()));
            address
                .or_else(|_no_address| text.parse().map(Self))
                .map_err(|_no_range| format!("{text:?} is not {expected}"))
        })
    }
}
