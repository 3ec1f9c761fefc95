//! The settings file of a proxy, with a field for each key that tests change. Other keys go into `extra`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

/// The file of one proxy.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(
    missing_docs,
    reason = "the fields have the names of the settings file"
)]
pub struct Settings {
    pub node: String,
    pub cluster_id: String,
    pub pods: Vec<PodEntry>,
    pub workloads: Vec<Workload>,
    pub services: Vec<Service>,
    pub policies: Vec<Policy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<Authority>,
    pub admin: Address,
    pub metrics: Address,
    pub readiness: Address,
    pub capture: Capture,
    pub log: Log,
    /// Other keys.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

impl Settings {
    /// Sets `termination.deadline`, for example `60s`.
    pub fn set_deadline(&mut self, deadline: &str) {
        let termination = serde_json::json!({ "deadline": deadline });
        drop(self.extra.insert("termination".to_owned(), termination));
    }
}

/// A pod to enrol on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(
    missing_docs,
    reason = "the fields have the names of the settings file"
)]
pub struct PodEntry {
    pub workload: String,
    pub netns: PathBuf,
}

/// A workload of the mesh.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields have the names of the workload API")]
pub struct Workload {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    pub workload_ips: Vec<IpAddr>,
    pub protocol: String,
    pub node: String,
    pub services: BTreeMap<String, BTreeMap<u16, u16>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub authorization_policies: Vec<String>,
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// A service of the mesh.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the fields have the names of the workload API")]
pub struct Service {
    pub name: String,
    pub namespace: String,
    pub hostname: String,
    /// `network/address`; the local network's name is empty.
    pub vips: Vec<String>,
    pub ports: BTreeMap<u16, u16>,
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// An authorization policy.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the fields have the names of the workload API")]
pub struct Policy {
    pub name: String,
    pub namespace: String,
    /// `Global`, `Namespace` or `WorkloadSelector`.
    pub scope: String,
    /// `Allow` or `Deny`.
    pub action: String,
    /// Rules of clauses of matches.
    pub rules: serde_json::Value,
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// The certificate authority.
#[derive(Debug, Clone, Serialize)]
#[allow(
    missing_docs,
    reason = "the fields have the names of the settings file"
)]
pub struct Authority {
    pub local: LocalAuthority,
}

/// The embedded certificate authority.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(
    missing_docs,
    reason = "the fields have the names of the settings file"
)]
pub struct LocalAuthority {
    pub directory: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaf_ttl: Option<String>,
}

/// An address to listen on.
#[derive(Debug, Clone, Serialize)]
#[allow(
    missing_docs,
    reason = "the fields have the names of the settings file"
)]
pub struct Address {
    pub address: String,
}

/// The settings of capture.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(
    missing_docs,
    reason = "the fields have the names of the settings file"
)]
pub struct Capture {
    pub bpf_directory: PathBuf,
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// The log.
#[derive(Debug, Clone, Serialize)]
#[allow(
    missing_docs,
    reason = "the fields have the names of the settings file"
)]
pub struct Log {
    pub filter: String,
    pub format: String,
}

impl Settings {
    /// The text of the file.
    ///
    /// # Errors
    /// When `extra` contains a value that YAML cannot represent.
    pub fn to_yaml(&self) -> anyhow::Result<String> {
        Ok(serde_yaml_ng::to_string(self)?)
    }
}

impl Policy {
    /// A policy for a whole namespace.
    #[must_use]
    pub fn namespace(name: &str, action: &str, rules: serde_json::Value) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            scope: "Namespace".to_owned(),
            action: action.to_owned(),
            rules,
            extra: BTreeMap::new(),
        }
    }

    /// A policy for the workloads that list it, see [`Workload::authorization_policies`].
    #[must_use]
    pub fn selector(name: &str, action: &str, rules: serde_json::Value) -> Self {
        Self {
            scope: "WorkloadSelector".to_owned(),
            ..Self::namespace(name, action, rules)
        }
    }
}
