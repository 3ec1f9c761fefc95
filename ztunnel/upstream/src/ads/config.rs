//! The settings of the client: the control plane, how it is verified, and the node's description.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};

use api::envoy::config::core::v3 as core;
use mesh::Fault;

/// The settings of the client.
#[derive(Clone)]
pub struct Config {
    /// `https://host:port`. `http://` is for tests: no token is sent over it.
    pub address: String,
    /// The roots that the control plane's certificate is verified with.
    pub root: Root,
    /// The name in its certificate and in requests, if it is not the host of the address.
    pub alt_hostname: Option<String>,
    /// The file with the bearer token, read for every connection. `None` sends no token.
    pub token: Option<PathBuf>,
    /// Additional headers, name and value.
    pub headers: Vec<(String, String)>,
    /// The description of the node.
    pub node: Node,
    /// The trust domain of workloads that set none.
    pub trust_domain: String,
    /// The part of the mesh that is subscribed.
    pub subscription: Subscription,
    /// The idle time after which the connection is pinged; istiod refuses less than 15 s. Default 30 s.
    pub keepalive_interval: Duration,
    /// The time without an answer to the ping after which the connection is closed. Default 10 s.
    pub keepalive_timeout: Duration,
    /// The time limit for a connection attempt, including TLS. Default 10 s.
    pub connect_timeout: Duration,
    /// The largest response, bytes. Default 200 MiB.
    pub max_message: usize,
    /// The time limit of [`super::OnDemandFetcher::fetch`]. Default 5 s.
    pub demand_timeout: Duration,
}

/// The roots that the control plane's certificate is verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// The certificates of a PEM file, read for every connection.
    File(PathBuf),
    /// The certificates that the system trusts.
    System,
}

/// The part of the mesh that is subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscription {
    /// The whole mesh.
    Everything,
    /// All policies, and the workloads and services that [`super::OnDemandFetcher`] fetches.
    OnDemand,
}

/// The description of the node. The control plane may choose the resources by it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Node {
    /// The address of the proxy's pod.
    pub instance_ip: String,
    /// The name of the proxy's pod.
    pub pod: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The Kubernetes node.
    pub node: String,
    /// The cluster.
    pub cluster_id: String,
    /// The DNS suffix of the cluster, for example `cluster.local`.
    pub cluster_domain: String,
    /// The version of the proxy, which `istioctl version` and `proxy-status` show.
    pub version: String,
    /// Additional metadata: every `ISTIO_META_<key>` without its prefix. It takes precedence.
    pub metadata: BTreeMap<String, serde_json::Value>,
}

/// An invalid setting of the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The address is invalid.
    #[error("the control plane's address {address:?} cannot be used: {why}")]
    Address {
        /// The setting.
        address: String,
        /// The problem.
        why: String,
    },
    /// The name is invalid.
    #[error("the control plane's alternative host name {name:?} is not a valid host name")]
    AltHostname {
        /// The setting.
        name: String,
    },
    /// A header cannot be sent. Its value is not shown, because it may be a secret.
    #[error("the header {name:?} for the control plane cannot be sent: {why}")]
    Header {
        /// Its name.
        name: String,
        /// The problem.
        why: &'static str,
    },
}

impl ConfigError {
    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Address { .. } => "address",
            Self::AltHostname { .. } => "alt_hostname",
            Self::Header { .. } => "header",
        }
    }

    /// The party that has to act: always the operator.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Us
    }
}

impl Config {
    /// The default settings for a control plane with this address and root: the whole mesh is
    /// subscribed.
    #[must_use]
    pub fn new(address: &str, root: Root, node: Node) -> Self {
        Self {
            address: address.to_owned(),
            root,
            alt_hostname: None,
            token: None,
            headers: Vec::new(),
            node,
            trust_domain: "cluster.local".to_owned(),
            subscription: Subscription::Everything,
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            max_message: 200 << 20,
            demand_timeout: Duration::from_secs(5),
        }
    }
}

impl fmt::Debug for Config {
    /// Omits the values of headers, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("address", &self.address)
            .field("root", &self.root)
            .field("alt_hostname", &self.alt_hostname)
            .field("token", &self.token)
            .field("node", &self.node)
            .field("trust_domain", &self.trust_domain)
            .field("subscription", &self.subscription)
            .finish_non_exhaustive()
    }
}

/// The settings after validation.
#[derive(Clone)]
pub(super) struct ValidConfig {
    pub(super) settings: Config,
    pub(super) uri: Uri,
    /// The authority of requests, if it is not that of the address.
    pub(super) origin: Option<Uri>,
    pub(super) headers: Vec<(AsciiMetadataKey, AsciiMetadataValue)>,
}

impl ValidConfig {
    pub(super) fn new(settings: Config) -> Result<Self, ConfigError> {
        let uri = uri(&settings.address)?;
        let origin = match &settings.alt_hostname {
            Some(name) => Some(origin(&uri, name)?),
            None => None,
        };
        let mut headers = Vec::with_capacity(settings.headers.len());
        for (name, value) in &settings.headers {
            headers.push(header(name, value)?);
        }
        Ok(Self {
            settings,
            uri,
            origin,
            headers,
        })
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }
}

fn uri(text: &str) -> Result<Uri, ConfigError> {
    let refuse = |why: String| ConfigError::Address {
        address: text.to_owned(),
        why,
    };
    let uri: Uri = text
        .parse()
        .map_err(|error: http::uri::InvalidUri| refuse(error.to_string()))?;
    let Some(host) = uri.host().filter(|host| !host.is_empty()) else {
        return Err(refuse("expected https://host:port".to_owned()));
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if is_loopback => {}
        Some("http") => {
            let why = "it is not a loopback address, so it must begin with https://";
            return Err(refuse(why.to_owned()));
        }
        _ => return Err(refuse("expected https://host:port".to_owned())),
    }
    Ok(uri)
}

fn origin(address: &Uri, name: &str) -> Result<Uri, ConfigError> {
    let refuse = || ConfigError::AltHostname {
        name: name.to_owned(),
    };
    let authority = match address.port_u16() {
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    };
    let server = rustls_pki_types::ServerName::try_from(name);
    server.map_err(|_not_a_name| refuse())?;
    Uri::builder()
        .scheme(address.scheme_str().unwrap_or("https"))
        .authority(authority)
        .path_and_query("/")
        .build()
        .map_err(|_not_a_name| refuse())
}

fn header(name: &str, value: &str) -> Result<(AsciiMetadataKey, AsciiMetadataValue), ConfigError> {
    let refuse = |why| ConfigError::Header {
        name: name.to_owned(),
        why,
    };
    let key = AsciiMetadataKey::from_bytes(name.as_bytes())
        .map_err(|_not_a_name| refuse("the name is not a valid text header"))?;
    let mut value = AsciiMetadataValue::try_from(value)
        .map_err(|_not_ascii| refuse("the value is not visible ASCII"))?;
    value.set_sensitive(true);
    Ok((key, value))
}

impl Node {
    /// `ztunnel~<instance ip>~<pod>.<ns>~<ns>.svc.<cluster domain>`, which istiod parses.
    pub(super) fn id(&self) -> String {
        let Self {
            instance_ip,
            pod,
            namespace,
            cluster_domain,
            ..
        } = self;
        format!("ztunnel~{instance_ip}~{pod}.{namespace}~{namespace}.svc.{cluster_domain}")
    }

    pub(super) fn message(&self) -> core::Node {
        let texts = [
            ("NAME", &self.pod),
            ("NAMESPACE", &self.namespace),
            ("INSTANCE_IPS", &self.instance_ip),
            ("NODE_NAME", &self.node),
            ("CLUSTER_ID", &self.cluster_id),
            ("ISTIO_VERSION", &self.version),
        ];
        let mut fields: BTreeMap<String, Value> = texts
            .into_iter()
            .map(|(key, text)| (key.to_owned(), wrapped(Kind::StringValue(text.clone()))))
            .collect();
        for (key, json) in &self.metadata {
            fields.insert(key.clone(), value(json));
        }
        core::Node {
            id: self.id(),
            cluster: String::new(),
            metadata: Some(Struct { fields }),
        }
    }
}

const fn wrapped(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

fn value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    wrapped(match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(yes) => Kind::BoolValue(*yes),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(items) => Kind::ListValue(ListValue {
            values: items.iter().map(value).collect(),
        }),
        Json::Object(entries) => Kind::StructValue(Struct {
            fields: entries
                .iter()
                .map(|(key, json)| (key.clone(), value(json)))
                .collect(),
        }),
    })
}
