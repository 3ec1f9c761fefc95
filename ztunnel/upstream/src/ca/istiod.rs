//! The certificate authority of Istio's control plane, asked over gRPC
//! (`istio.v1.auth.IstioCertificateService`).
//!
//! For each certificate a fresh key is made here and never leaves; the authority gets a signing
//! request and the node's token, and what it answers is checked as a peer would before it is used.
//! All requests share one connection. Pacing, retries and renewal are [`tls::Store`]'s.
//!
//! What may change without a restart: the token (read for each request), the roots that the
//! control plane is verified with, and the mesh's roots. While a root of the mesh is replaced,
//! peers of both are accepted: trusted are the roots at the end of the answer, all of them if
//! there are several, and those of [`Config::mesh_roots`].
//!
//! [`tls::Store`]: tunnel::tls::Store

mod answer;
mod channel;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod order;
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
use self::order::Order;
use self::roots::RootFile;
use api::istio::v1::auth::IstioCertificateRequest;
use api::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh::Identity;
use tunnel::tls::{IssueError, Issued, Issuer};

/// The lifetime of certificates that is asked for unless told otherwise.
pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// How to reach the control plane's authority, and as whom.
#[derive(Clone)]
pub struct Config {
    /// `https://host:port`; without a scheme, https. `http://` is for tests and taken for
    /// loopback addresses only: the token would travel in the clear.
    pub address: String,
    /// Whom the control plane's certificate must be vouched for by.
    pub root: Root,
    /// The name in the control plane's certificate, where it is not the address's.
    pub alt_hostname: Option<String>,
    /// The mesh's root certificates as the cluster distributes them (PEM), trusted for peers
    /// beside those that come with each certificate. Not [`Self::root`] of itself: a control
    /// plane may be verified by a public authority, which has no say about workloads.
    pub mesh_roots: Option<PathBuf>,
    /// The file with the node's token, sent as `authorization: Bearer …`.
    pub token: Option<PathBuf>,
    /// The cluster that the token is of (`clusterid`); empty: not sent.
    pub cluster_id: String,
    /// More metadata for each request.
    pub headers: Vec<(String, String)>,
    /// Who asks.
    pub asker: Asker,
    /// The lifetime to ask for; the authority may give less.
    pub validity: Duration,
    /// How long connecting may take, the TLS handshake included.
    pub connect_timeout: Duration,
    /// How long a request may take, connecting included. Should be less than
    /// [`tls::Config::attempt_timeout`](tunnel::tls::Config::attempt_timeout), which knows less
    /// about what went wrong.
    pub request_timeout: Duration,
}

/// Whom the control plane's certificate must be vouched for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// The certificates of a PEM file, read again when it changes.
    File(PathBuf),
    /// The system's.
    System,
}

/// In whose name certificates are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A node, for the workloads on it: each request names one.
    Node,
    /// A workload for itself: the token says which.
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
            asker: Asker::Node,
            validity: DEFAULT_VALIDITY,
            connect_timeout: Duration::from_secs(4),
            request_timeout: Duration::from_secs(8),
        }
    }
}

impl fmt::Debug for Config {
    /// Without the headers' values, which may be secret.
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
            .field("asker", &self.asker)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// A client of the control plane's authority.
pub struct IstiodCa {
    config: Config,
    headers: MetadataMap,
    line: CaChannel,
    mesh_roots: Option<RootFile>,
}

impl IstiodCa {
    /// Checks the settings and reads the roots. Connects with the first request.
    ///
    /// # Errors
    /// When a setting or a file cannot be used; the text says which.
    pub fn new(config: Config) -> Result<Self, IstiodError> {
        let headers = order::headers(&config)?;
        let mesh_roots = config.mesh_roots.as_deref().map(RootFile::open);
        Ok(Self {
            headers,
            line: CaChannel::new(&config)?,
            mesh_roots: mesh_roots.transpose()?,
            config,
        })
    }

    async fn ask(&self, identity: &Identity) -> Result<Issued, IssueError> {
        let order = Order::new(identity, self.config.asker)?;
        let request = order.request(&self.config, &self.headers)?;
        let chain = self.exchange(request).await?;
        let mut issued = answer::read(&chain, &order.key, identity)?;
        if let Some(file) = &self.mesh_roots {
            for root in file.current().certificates() {
                if !issued.roots.contains(&root) {
                    issued.roots.push(root);
                }
            }
        }
        Ok(issued)
    }

    /// Sends a request; the chain that is answered, as it comes.
    async fn exchange(
        &self,
        request: tonic::Request<IstioCertificateRequest>,
    ) -> Result<Vec<String>, IssueError> {
        let limit = self.config.request_timeout;
        let channel = self
            .line
            .channel()
            .map_err(|error| self.unavailable(error))?;
        let mut client =
            IstioCertificateServiceClient::new(channel).max_decoding_message_size(answer::LIMIT);
        let answer = match tokio::time::timeout(limit, client.create_certificate(request)).await {
            // tonic keeps the time, too.
            Ok(Err(status))
                if [Code::Cancelled, Code::DeadlineExceeded].contains(&status.code()) =>
            {
                None
            }
            Ok(answer) => Some(answer.map_err(|status| status::sort(&status, &self.config))?),
            Err(_elapsed) => None,
        };
        let Some(answer) = answer else {
            // Perhaps nobody is at the other end any more, and nothing would tell.
            self.line.hang_up();
            return Err(self.unavailable(format!("no answer in {limit:?}")));
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
        Box::pin(self.ask(identity))
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
