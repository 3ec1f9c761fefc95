//! The only file that reads the process's environment.
//!
//! The names are those of the Istio chart's DaemonSet, so that its manifests start this proxy
//! unchanged; variables that the chart does not have are called `ZTUNNEL_...`. Variables of the
//! chart that have no effect here are ignored with a warning. An invalid value is an error that
//! names the variable.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::file::ModeName;
use super::units::duration_or_seconds;
use super::{Acceleration, Bytes, CaptureBy, ConfigError, Instance, LogFormat, SameNode};

/// The values of the environment. An empty variable is treated as unset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    pub(super) node: Option<String>,
    pub(super) cluster_id: Option<String>,
    pub(super) network: Option<String>,
    pub(super) mode: Option<ModeName>,
    pub(super) workload: Option<WorkloadInfo>,
    pub(super) mesh_file: Option<PathBuf>,
    pub(super) mesh_text: Option<String>,
    pub(super) node_agent: Option<bool>,
    pub(super) node_agent_socket: Option<PathBuf>,
    pub(super) fake_ca: bool,
    pub(super) leaf_ttl: Option<Duration>,
    pub(super) in_cluster: bool,
    pub(super) xds: UpstreamVariables,
    pub(super) ca: UpstreamVariables,
    pub(super) token: Option<PathBuf>,
    pub(super) mesh_roots: Option<PathBuf>,
    pub(super) crl: Option<PathBuf>,
    pub(super) on_demand: Option<bool>,
    pub(super) instance: Instance,
    pub(super) grace_period: Option<Duration>,
    pub(super) termination_deadline: Option<Duration>,
    pub(super) mark: Option<u32>,
    pub(super) capture_by: Option<CaptureBy>,
    pub(super) cgroup: Option<PathBuf>,
    pub(super) socks5: Option<bool>,
    pub(super) localhost_app_tunnel: Option<bool>,
    pub(super) verdicts: Option<u32>,
    pub(super) dns: Option<bool>,
    pub(super) same_node: Option<SameNode>,
    pub(super) acceleration: Option<Acceleration>,
    pub(super) keepalive: Option<bool>,
    pub(super) keepalive_time: Option<Duration>,
    pub(super) keepalive_interval: Option<Duration>,
    pub(super) keepalive_retries: Option<u32>,
    pub(super) max_streams: Option<u32>,
    pub(super) idle_release: Option<Duration>,
    pub(super) stream_window: Option<Bytes>,
    pub(super) connection_window: Option<Bytes>,
    pub(super) max_frame: Option<Bytes>,
    pub(super) threads: Option<NonZeroUsize>,
    pub(super) log_filter: Option<String>,
    pub(super) log_format: Option<LogFormat>,
    /// Variables that are set and have no effect.
    pub(super) ignored: Vec<&'static str>,
}

/// Variables of Istio's ztunnel that have no effect: this proxy has no such choice.
const IGNORED: [&str; 6] = [
    "ENABLE_ORIG_SRC",
    "INPOD_PORT_REUSE",
    "IPV6_ENABLED",
    "PREFERED_SERVICE_NAMESPACE",
    "PROXY_CONFIG",
    "TRANSPARENT_NETWORK_POLICIES",
];

/// The environment's values for a service of the control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UpstreamVariables {
    pub(super) address: Option<String>,
    pub(super) root: Option<PathBuf>,
    pub(super) hostname: Option<String>,
    pub(super) headers: BTreeMap<String, String>,
}

/// `PROXY_WORKLOAD_INFO`: the workload that a dedicated proxy serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WorkloadInfo {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) service_account: String,
}

impl Environment {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// If a variable has an invalid value.
    pub fn of_process() -> Result<Self, ConfigError> {
        // Names and values that are not UTF-8 belong to no setting.
        let text = |(name, value): (OsString, OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self::read(std::env::vars_os().filter_map(text))
    }

    /// Reads an environment that is given as names and values.
    ///
    /// # Errors
    /// If a variable has an invalid value.
    pub fn read(
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let set = variables.into_iter().filter(|(_, value)| !value.is_empty());
        let env = Lookup(set.collect());
        Ok(Self {
            ignored: env.ignored(),
            node: env.text("NODE_NAME"),
            // In the order of Istio's ztunnel: uids of workloads begin with the cluster's id.
            cluster_id: env.first_text(&["ISTIO_META_CLUSTER_ID", "CLUSTER_ID"]),
            network: env.text("NETWORK"),
            mode: env.parsed("PROXY_MODE", |text| ModeName::parse(&text.to_lowercase()))?,
            workload: env.parsed("PROXY_WORKLOAD_INFO", workload_info)?,
            mesh_file: env.text("LOCAL_XDS_PATH").map(PathBuf::from),
            mesh_text: env.text("LOCAL_XDS"),
            node_agent: env.parsed("INPOD_ENABLED", switch)?,
            node_agent_socket: env.text("INPOD_UDS").map(PathBuf::from),
            fake_ca: env.parsed("FAKE_CA", switch)?.unwrap_or(false),
            leaf_ttl: env.duration("SECRET_TTL")?,
            in_cluster: env.text("KUBERNETES_SERVICE_HOST").is_some(),
            xds: UpstreamVariables {
                address: env.text("XDS_ADDRESS"),
                root: env.parsed("XDS_ROOT_CA", certificates)?,
                hostname: env.text("ALT_XDS_HOSTNAME"),
                headers: env.with_prefix("XDS_HEADER_"),
            },
            ca: UpstreamVariables {
                address: env.text("CA_ADDRESS"),
                root: env.parsed("CA_ROOT_CA", certificates)?,
                hostname: env.text("ALT_CA_HOSTNAME"),
                headers: env.with_prefix("CA_HEADER_"),
            },
            token: env.parsed("AUTH_TOKEN", token)?,
            mesh_roots: env.text("ZTUNNEL_MESH_ROOTS").map(PathBuf::from),
            crl: env.text("CRL_PATH").map(PathBuf::from),
            on_demand: env.parsed("XDS_ON_DEMAND", switch)?,
            instance: env.instance(),
            grace_period: env.duration("TERMINATION_GRACE_PERIOD_SECONDS")?,
            termination_deadline: env.duration("CONNECTION_TERMINATION_DEADLINE")?,
            mark: env.number("PACKET_MARK")?,
            cgroup: env.text("ZTUNNEL_CAPTURE_CGROUP").map(PathBuf::from),
            capture_by: env.parsed("ZTUNNEL_CAPTURE_BY", CaptureBy::parse)?,
            socks5: env.parsed("UNSTABLE_ENABLE_SOCKS5", switch)?,
            localhost_app_tunnel: env.parsed("LOCALHOST_APP_TUNNEL", switch)?,
            verdicts: env.number("ZTUNNEL_CAPTURE_VERDICTS")?,
            // As Istio's ztunnel reads it: every value other than true is false.
            dns: env
                .text("ISTIO_META_DNS_CAPTURE")
                .map(|text| text.trim().eq_ignore_ascii_case("true")),
            same_node: env.parsed("ZTUNNEL_SAME_NODE", SameNode::parse)?,
            acceleration: env.parsed("ZTUNNEL_ACCELERATION", Acceleration::parse)?,
            keepalive: env.parsed("KEEPALIVE_ENABLED", switch)?,
            keepalive_time: env.duration("KEEPALIVE_TIME")?,
            keepalive_interval: env.duration("KEEPALIVE_INTERVAL")?,
            keepalive_retries: env.number("KEEPALIVE_RETRIES")?,
            max_streams: env.number("POOL_MAX_STREAMS_PER_CONNECTION")?,
            idle_release: env.duration("POOL_UNUSED_RELEASE_TIMEOUT")?,
            stream_window: env.size("HTTP2_STREAM_WINDOW_SIZE")?,
            connection_window: env.size("HTTP2_CONNECTION_WINDOW_SIZE")?,
            max_frame: env.size("HTTP2_FRAME_SIZE")?,
            threads: env.threads()?,
            log_filter: env.text("RUST_LOG"),
            log_format: env.parsed("LOG_FORMAT", LogFormat::parse)?,
        })
    }
}

/// The variables that are set and not empty.
struct Lookup(BTreeMap<String, String>);

impl Lookup {
    fn text(&self, name: &'static str) -> Option<String> {
        self.0.get(name).cloned()
    }

    /// The value of the first of these variables that is set.
    fn first_text(&self, names: &[&'static str]) -> Option<String> {
        names.iter().find_map(|name| self.text(name))
    }

    fn ignored(&self) -> Vec<&'static str> {
        let is_set = |name: &&'static str| self.text(name).is_some();
        IGNORED.into_iter().filter(is_set).collect()
    }

    /// The variables whose names begin with a prefix, by the rest of their names.
    fn with_prefix(&self, prefix: &str) -> BTreeMap<String, String> {
        let all = self.0.iter();
        all.filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value.clone())))
            .collect()
    }

    /// The identity of this proxy, from the variables that Istio's chart sets.
    fn instance(&self) -> Instance {
        let text = |name| self.text(name).unwrap_or_default();
        Instance {
            ip: text("INSTANCE_IP"),
            pod: text("POD_NAME"),
            namespace: text("POD_NAMESPACE"),
            cluster_domain: self
                .text("CLUSTER_DOMAIN")
                .unwrap_or_else(|| "cluster.local".to_owned()),
            metadata: self.with_prefix("ISTIO_META_"),
        }
    }

    fn parsed<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let parsed = self.text(name).map(|text| parse(text.trim())).transpose();
        parsed.map_err(|problem| ConfigError::Environment { name, problem })
    }

    fn duration(&self, name: &'static str) -> Result<Option<Duration>, ConfigError> {
        self.parsed(name, |text| {
            duration_or_seconds(text).map_err(|error| error.to_string())
        })
    }

    fn size(&self, name: &'static str) -> Result<Option<Bytes>, ConfigError> {
        self.parsed(name, |text| {
            text.parse()
                .map_err(|error: super::ParseUnitError| error.to_string())
        })
    }

    fn number(&self, name: &'static str) -> Result<Option<u32>, ConfigError> {
        self.parsed(name, |text| {
            text.parse()
                .map_err(|_no_number| format!("{text:?} is not a number, 0 to {}", u32::MAX))
        })
    }

    /// `ZTUNNEL_WORKER_THREADS` is a number, or a share of the processors such as `50%` or `33.3%`;
    /// `ZTUNNEL_CPU_LIMIT` is the number of processors that the container may use.
    fn threads(&self) -> Result<Option<NonZeroUsize>, ConfigError> {
        let limit = self.parsed("ZTUNNEL_CPU_LIMIT", processors)?;
        let processors = limit
            .or_else(|| std::thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN);
        self.parsed("ZTUNNEL_WORKER_THREADS", |text| {
            let refuse = || format!("{text:?} is neither a number of threads nor a percentage");
            let Some(share) = text.strip_suffix('%') else {
                return text.parse().map_err(|_no_number| refuse());
            };
            let share = hundredths(share.trim()).ok_or_else(refuse)?;
            let threads = (processors.get() * share).div_ceil(100 * 100);
            NonZeroUsize::new(threads).ok_or_else(refuse)
        })
    }
}

/// Hundredths of a percentage such as `33.3`, up to 100 percent.
fn hundredths(text: &str) -> Option<usize> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let part = format!("{part:0<2}");
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(&part) {
        return None;
    }
    let whole: usize = whole.parse().ok()?;
    let part: usize = part.get(..2)?.parse().ok()?;
    let share = whole.checked_mul(100)?.checked_add(part)?;
    (1..=100 * 100).contains(&share).then_some(share)
}

/// The path of a file of certificates. Istio's ztunnel also takes the certificates themselves.
fn certificates(text: &str) -> Result<PathBuf, String> {
    if text.starts_with("-----BEGIN") {
        return Err("the value is a certificate; write it to a file and set the variable to the file's path".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// The path of a file with a token. Istio's ztunnel takes a value that is no file for the token
/// itself; here the path is shown in dumps, so it must not be a secret.
fn token(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if text.starts_with(['/', '.']) || path.exists() {
        return Ok(path);
    }
    Err(
        "the value is not the path of a file; write the token to a file and set the variable to its \
         path (the value is not shown, because it may be a token)"
            .to_owned(),
    )
}

fn switch(text: &str) -> Result<bool, String> {
    match text.to_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// A number of processors; Kubernetes rounds a limit in millis up.
fn processors(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .map_err(|_no_number| format!("{text:?} is not a number of processors"))
}

fn workload_info(text: &str) -> Result<WorkloadInfo, String> {
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        [namespace, name, account] if parts.iter().all(|part| !part.is_empty()) => {
            Ok(WorkloadInfo {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                service_account: account.to_owned(),
            })
        }
        _ => Err(format!("{text:?} is not namespace/name/service account")),
    }
}
