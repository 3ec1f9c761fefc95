//! The connection to the control plane. The first request opens it. It is opened again after it broke,
//! after the roots changed, and after a request without an answer.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use super::error::IstiodError;
use super::roots::{RootFile, Roots};
use super::{Config, Root};

/// The interval of HTTP/2 pings while a request waits.
const PING: Duration = Duration::from_secs(15);

pub(super) struct CaChannel {
    endpoint: Endpoint,
    security: Security,
    current: Mutex<Option<Connection>>,
}

enum Security {
    /// Plaintext on loopback, for tests.
    None,
    /// Configured in the endpoint.
    SystemRoots,
    File {
        file: RootFile,
        tls: Box<ClientTlsConfig>,
        address: String,
    },
}

struct Connection {
    channel: Channel,
    /// The roots that verified the control plane.
    roots: Option<Arc<Roots>>,
}

impl CaChannel {
    pub(super) fn new(config: &Config) -> Result<Self, IstiodError> {
        let uri = uri(&config.address)?;
        let secure = uri.scheme() == Some(&Scheme::HTTPS);
        if !secure && !is_loopback(&uri) {
            return Err(IstiodError::Plaintext {
                address: config.address.clone(),
            });
        }
        let endpoint = Endpoint::from(uri)
            .connect_timeout(config.connect_timeout)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(config.request_timeout)
            .http2_max_header_list_size(16 * 1024);
        let failed = |error: tonic::transport::Error| IstiodError::Tls {
            address: config.address.clone(),
            why: with_causes(&error),
        };
        let mut tls = ClientTlsConfig::new().timeout(config.connect_timeout);
        if let Some(name) = &config.alt_hostname {
            tls = tls.domain_name(name);
        }
        let (endpoint, security) = match &config.root {
            _ if !secure => (endpoint, Security::None),
            Root::System => {
                let endpoint = endpoint.tls_config(tls.with_native_roots());
                (endpoint.map_err(failed)?, Security::SystemRoots)
            }
            Root::File(path) => {
                let file = RootFile::open(path)?;
                // Reports an invalid name now, not with each request.
                endpoint.clone().tls_config(tls.clone()).map_err(failed)?;
                let security = Security::File {
                    file,
                    tls: Box::new(tls),
                    address: config.address.clone(),
                };
                (endpoint, security)
            }
        };
        Ok(Self {
            endpoint,
            security,
            current: Mutex::new(None),
        })
    }

    /// The connection. A new one connects with the first request.
    pub(super) fn channel(&self) -> Result<Channel, IstiodError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let roots = match &self.security {
            Security::None | Security::SystemRoots => None,
            Security::File { file, .. } => Some(file.current()),
        };
        if let Some(connection) = &*current
            && connection.roots.as_ref().map(Arc::as_ptr) == roots.as_ref().map(Arc::as_ptr)
        {
            return Ok(connection.channel.clone());
        }
        let channel = match (&self.security, &roots) {
            (Security::File { tls, address, .. }, Some(roots)) => {
                let tls = tls.as_ref().clone().trust_anchors(roots.anchors().to_vec());
                let endpoint = self.endpoint.clone().tls_config(tls);
                let endpoint = endpoint.map_err(|error| IstiodError::Tls {
                    address: address.clone(),
                    why: with_causes(&error),
                })?;
                endpoint.connect_lazy()
            }
            _ => self.endpoint.connect_lazy(),
        };
        *current = Some(Connection {
            channel: channel.clone(),
            roots,
        });
        Ok(channel)
    }

    /// Makes the next request use a new connection. Requests in progress keep theirs.
    pub(super) fn reset(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn uri(address: &str) -> Result<Uri, IstiodError> {
    let refused = |why: String| IstiodError::Address {
        address: address.to_owned(),
        why,
    };
    let whole = if address.contains("://") {
        address.to_owned()
    } else {
        format!("https://{address}")
    };
    let uri: Uri = whole
        .parse()
        .map_err(|error: http::uri::InvalidUri| refused(error.to_string()))?;
    if ![Some("https"), Some("http")].contains(&uri.scheme_str()) {
        return Err(refused("expected https://host:port".to_owned()));
    }
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16();
    let expected = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let authority = uri.authority().map(http::uri::Authority::as_str);
    if host.is_empty() || authority != Some(&expected) {
        return Err(refused("expected https://host:port".to_owned()));
    }
    if !["", "/"].contains(&uri.path()) || uri.query().is_some() {
        return Err(refused("expected nothing after the port".to_owned()));
    }
    Ok(uri)
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// An error with its causes.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut all = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !all.contains(&cause_text) {
            all = format!("{all}: {cause_text}");
        }
        next = cause.source();
    }
    all
}
