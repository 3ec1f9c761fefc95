//! A client of the certificate authority of Istio's control plane, over gRPC
//! (`istio.v1.auth.IstioCertificateService`).
//!
//! Each certificate has a fresh key, which never leaves this process: the authority receives a signing
//! request and the node's token. The answer is checked as a peer would check it. All requests share
//! one connection. [`tls::Store`] does pacing, retries and renewal.
//!
//! The token, the roots that verify the control plane and the roots of the mesh may change at run
//! time. During a rotation of the mesh's root, peers with the old and the new root are accepted:
//! trusted are all roots at the end of the answer and those of [`Config::mesh_roots`].
//!
//! [`tls::Store`]: tunnel::tls::Store

pub mod answer;
mod channel;
mod error;
mod request;
mod roots;
mod status;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use tonic::Code;
use tonic::metadata::MetadataMap;

use self::channel::CaChannel;
pub use self::error::IstiodError;
use self::request::CertificateRequest;
use self::roots::RootFile;
use api::istio::v1::auth::IstioCertificateRequest;
use api::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh::Identity;
use tunnel::tls::{IssueError, Issued, Issuer};

/// The default lifetime of a certificate.
pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// The settings of the client.
#[derive(Clone)]
pub struct Config {
    /// `https://host:port`; the default scheme is https. `http://` is accepted for loopback addresses
    /// only (tests), because the token would be sent in plaintext.
    pub address: String,
    /// The roots that the control plane's certificate is verified with.
    pub root: Root,
    /// The name in the control plane's certificate, if it is not the host of the address.
    pub alt_hostname: Option<String>,
    /// The mesh's root certificates as the cluster distributes them (PEM), trusted for peers in
    /// addition to the roots of each answer. [`Self::root`] is not trusted for peers: a control
    /// plane may have a certificate of a public authority, which must not issue for workloads.
    pub mesh_roots: Option<PathBuf>,
    /// The file with the node's token, sent as `authorization: Bearer …`.
    pub token: Option<PathBuf>,
    /// The cluster of the token (header `clusterid`); not sent if empty.
    pub cluster_id: String,
    /// Additional metadata of each request.
    pub headers: Vec<(String, String)>,
    /// On whose behalf certificates are requested.
    pub requester: Requester,
    /// The requested lifetime; the authority may grant less.
    pub validity: Duration,
    /// The time limit for connecting, including the TLS handshake.
    pub connect_timeout: Duration,
    /// The time limit for a request, including connecting. It should be less than
    /// [`tls::Config::attempt_timeout`](tunnel::tls::Config::attempt_timeout), whose error is less
    /// specific.
    pub request_timeout: Duration,
}

/// The roots that the control plane's certificate is verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// The certificates of a PEM file, read again when it changes.
    File(PathBuf),
    /// The certificates that the system trusts.
    System,
}

/// On whose behalf certificates are requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requester {
    /// A node, for its workloads: each request names one.
    Node,
    /// A workload, for itself: the token identifies it.
    Workload,
}

impl Config {
    /// The usual settings for an address: the system's roots, no token.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            root: Root::System,
            alt_hostname: None,
            mesh_roots: None,
            token: None,
            cluster_id: String::new(),
            headers: Vec::new(),
            requester: Requester::Node,
            validity: DEFAULT_VALIDITY,
            connect_timeout: Duration::from_secs(4),
            request_timeout: Duration::from_secs(8),
        }
    }
}

impl fmt::Debug for Config {
    /// Omits the values of headers, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Config")
            .field("address", &self.address)
            .field("root", &self.root)
            .field("alt_hostname", &self.alt_hostname)
            .field("mesh_roots", &self.mesh_roots)
            .field("token", &self.token)
            .field("cluster_id", &self.cluster_id)
            .field("headers", &names)
            .field("requester", &self.requester)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// A client of the control plane's authority.
pub struct IstiodCa {
    config: Config,
    headers: MetadataMap,
    channel: CaChannel,
    mesh_roots: Option<RootFile>,
}

impl IstiodCa {
    /// Checks the settings and reads the roots. The first request connects.
    ///
    /// # Errors
    /// When a setting or a file cannot be used; the message names it.
    pub fn new(config: Config) -> Result<Self, IstiodError> {
        let headers = request::headers(&config)?;
        let mesh_roots = config.mesh_roots.as_deref().map(RootFile::open);
        Ok(Self {
            headers,
            channel: CaChannel::new(&config)?,
            mesh_roots: mesh_roots.transpose()?,
            config,
        })
    }

    async fn request_certificate(&self, identity: &Identity) -> Result<Issued, IssueError> {
        let certificate = CertificateRequest::new(identity, self.config.requester)?;
        let request = certificate.message(&self.config, &self.headers)?;
        let chain = self.exchange(request).await?;
        let mut issued = answer::read(&chain, &certificate.key, identity)?;
        if let Some(file) = &self.mesh_roots {
            for root in file.current().certificates() {
                if !issued.roots.contains(&root) {
                    issued.roots.push(root);
                }
            }
        }
        Ok(issued)
    }

    /// Sends a request and returns the chain of the answer, unparsed.
    async fn exchange(
        &self,
        request: tonic::Request<IstioCertificateRequest>,
    ) -> Result<Vec<String>, IssueError> {
        let limit = self.config.request_timeout;
        let channel = self
            .channel
            .channel()
            .map_err(|error| self.unavailable(error))?;
        let mut client =
            IstioCertificateServiceClient::new(channel).max_decoding_message_size(answer::LIMIT);
        let answer = match tokio::time::timeout(limit, client.create_certificate(request)).await {
            // tonic enforces the limit, too.
            Ok(Err(status))
                if [Code::Cancelled, Code::DeadlineExceeded].contains(&status.code()) =>
            {
                None
            }
            Ok(answer) => Some(answer.map_err(|status| status::classify(&status, &self.config))?),
            Err(_elapsed) => None,
        };
        let Some(answer) = answer else {
            // The connection may be dead without an error.
            self.channel.reset();
            return Err(self.unavailable(format!("no answer within {limit:?}")));
        };
        Ok(answer.into_inner().cert_chain)
    }

    fn unavailable(&self, why: impl fmt::Display) -> IssueError {
        IssueError::Unavailable {
            issuer: self.config.address.clone(),
            why: why.to_string(),
        }
    }
}

impl Issuer for IstiodCa {
    fn issue<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send + 'a>> {
        Box::pin(self.request_certificate(identity))
    }
}

impl fmt::Debug for IstiodCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IstiodCa")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
