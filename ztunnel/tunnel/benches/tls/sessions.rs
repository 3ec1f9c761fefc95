//! The two TLS stacks, and the certificates that both use.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use mesh::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tunnel::tls::{Credentials, Issued, Revocations, accept, connect};

/// The DNS name in the certificates; only tokio-rustls checks it.
const NAME: &str = "bench.test";

/// What carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// `tunnel::tls`.
    Ours,
    /// tokio-rustls.
    TokioRustls,
    /// TCP without TLS.
    Plain,
}

impl Variant {
    pub(crate) const ALL: [Self; 3] = [Self::Ours, Self::TokioRustls, Self::Plain];
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "tunnel::tls",
            Self::TokioRustls => "tokio-rustls",
            Self::Plain => "plain TCP",
        })
    }
}

/// A stream of any variant.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> ByteStream for T {}

/// An established session.
pub(crate) struct Session {
    pub(crate) stream: Box<dyn ByteStream>,
    /// The cipher suite's IANA name; empty without TLS.
    pub(crate) cipher_suite: String,
}

/// Client and server of each variant, with the same certificates.
pub(crate) struct Endpoints {
    client: Credentials,
    server: Credentials,
    server_identity: Identity,
    connector: TlsConnector,
    acceptor: TlsAcceptor,
    name: ServerName<'static>,
}

/// A certificate with its key and its root, for both stacks.
struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    root: CertificateDer<'static>,
}

impl Certificate {
    fn credentials(&self, identity: &Identity) -> Result<Credentials> {
        let issued = Issued {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            roots: vec![self.root.clone()],
        };
        Credentials::new(identity, issued, &Revocations::default())
            .context("preparing a certificate for tunnel::tls")
    }
}

impl Endpoints {
    pub(crate) fn new() -> Result<Self> {
        let root_key = KeyPair::generate().context("generating the key of the root")?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params
            .self_signed(&root_key)
            .context("signing the root certificate")?;
        let issuer = Issuer::new(params, root_key);
        let identity = |account| Identity::new("cluster.local", "default", account);
        let (client_identity, server_identity) = (
            identity("client").context("the client's identity")?,
            identity("server").context("the server's identity")?,
        );
        let client = issue(&issuer, root.der(), &client_identity)?;
        let server = issue(&issuer, root.der(), &server_identity)?;
        Ok(Self {
            connector: TlsConnector::from(Arc::new(client_config(&client)?)),
            acceptor: TlsAcceptor::from(Arc::new(server_config(&server)?)),
            client: client.credentials(&client_identity)?,
            server: server.credentials(&server_identity)?,
            server_identity,
            name: ServerName::try_from(NAME).context("the server's name")?,
        })
    }

    /// The client's end.
    pub(crate) async fn connect(&self, variant: Variant, tcp: TcpStream) -> Result<Session> {
        Ok(match variant {
            Variant::Ours => {
                let expected = std::slice::from_ref(&self.server_identity);
                let stream = connect(tcp, &self.client, expected)
                    .await
                    .context("connecting with tunnel::tls")?;
                Session {
                    cipher_suite: stream.cipher_suite().to_owned(),
                    stream: Box::new(stream),
                }
            }
            Variant::TokioRustls => {
                let stream = self
                    .connector
                    .connect(self.name.clone(), tcp)
                    .await
                    .context("connecting with tokio-rustls")?;
                Session {
                    cipher_suite: suite_name(stream.get_ref().1),
                    stream: Box::new(stream),
                }
            }
            Variant::Plain => plain(tcp),
        })
    }

    /// The server's end.
    pub(crate) async fn accept(&self, variant: Variant, tcp: TcpStream) -> Result<Session> {
        Ok(match variant {
            Variant::Ours => {
                let stream = accept(tcp, &self.server)
                    .await
                    .context("accepting with tunnel::tls")?;
                Session {
                    cipher_suite: stream.cipher_suite().to_owned(),
                    stream: Box::new(stream),
                }
            }
            Variant::TokioRustls => {
                let stream = self
                    .acceptor
                    .accept(tcp)
                    .await
                    .context("accepting with tokio-rustls")?;
                Session {
                    cipher_suite: suite_name(stream.get_ref().1),
                    stream: Box::new(stream),
                }
            }
            Variant::Plain => plain(tcp),
        })
    }
}

fn plain(tcp: TcpStream) -> Session {
    Session {
        cipher_suite: String::new(),
        stream: Box::new(tcp),
    }
}

fn suite_name(state: &rustls::CommonState) -> String {
    let suite = state.negotiated_cipher_suite();
    let name = suite.and_then(|suite| suite.suite().as_str());
    name.unwrap_or("unknown").to_owned()
}

fn issue(
    issuer: &Issuer<'_, KeyPair>,
    root: &CertificateDer<'static>,
    identity: &Identity,
) -> Result<Certificate> {
    let key = KeyPair::generate().context("generating the key of a leaf")?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![
        SanType::URI(identity.as_str().try_into().context("a SPIFFE URI")?),
        SanType::DnsName(NAME.try_into().context("a DNS name")?),
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let leaf = params
        .signed_by(&key, issuer)
        .with_context(|| format!("signing the certificate of {identity}"))?;
    Ok(Certificate {
        chain: vec![leaf.der().clone()],
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        root: root.clone(),
    })
}

/// The cipher suites of `tunnel::tls`, in its order.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
}

fn roots(certificate: &Certificate) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots
        .add(certificate.root.clone())
        .context("trusting the root certificate")?;
    Ok(Arc::new(roots))
}

fn client_config(certificate: &Certificate) -> Result<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .context("configuring TLS 1.3")?
        .with_root_certificates(roots(certificate)?)
        .with_client_auth_cert(certificate.chain.clone(), certificate.key.clone_key())
        .context("configuring the client's certificate")?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn server_config(certificate: &Certificate) -> Result<ServerConfig> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(certificate)?, provider())
        .build()
        .context("configuring the verification of clients")?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .context("configuring TLS 1.3")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificate.chain.clone(), certificate.key.clone_key())
        .context("configuring the server's certificate")?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.ignore_client_order = true;
    config.send_tls13_tickets = 0;
    Ok(config)
}
