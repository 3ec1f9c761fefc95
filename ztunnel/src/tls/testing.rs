//! What the tests of this room share: an authority whose every mistake can be chosen, and pairs
//! of connected streams.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer as Signer,
    KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::DuplexStream;

use super::{Credentials, Error, Issued, Stream, accept, connect};
use crate::mesh::Identity;

pub(super) struct Authority {
    root: CertificateDer<'static>,
    signer: Signer<'static, KeyPair>,
}

/// A leaf to be issued; the default is a good one.
pub(super) struct Leaf {
    pub(super) uris: Vec<String>,
    pub(super) usages: Vec<ExtendedKeyUsagePurpose>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Leaf {
    pub(super) fn of(identity: &Identity) -> Self {
        Self {
            uris: vec![identity.to_string()],
            usages: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            not_before: SystemTime::now() - Duration::from_secs(60),
            not_after: SystemTime::now() + Duration::from_secs(3600),
        }
    }
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "test root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            root,
            signer: Signer::new(params, key),
        }
    }

    pub(super) fn root(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    pub(super) fn issue(&self, leaf: &Leaf) -> Issued {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = leaf
            .uris
            .iter()
            .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()))
            .collect();
        params.extended_key_usages.clone_from(&leaf.usages);
        params.not_before = leaf.not_before.into();
        params.not_after = leaf.not_after.into();
        let certificate = params.signed_by(&key, &self.signer).unwrap();
        Issued {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            roots: vec![self.root.clone()],
        }
    }

    /// Good credentials.
    pub(super) fn credentials(&self, identity: &Identity) -> Credentials {
        Credentials::new(identity, self.issue(&Leaf::of(identity))).unwrap()
    }

    /// Credentials that present `leaf`, whatever is wrong with it, and trust this root.
    pub(super) fn flawed(&self, identity: &Identity, leaf: &Leaf) -> Credentials {
        Credentials::unchecked(identity, self.issue(leaf))
    }
}

pub(super) fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "default", account).unwrap()
}

/// Runs both ends of a handshake over a pipe of `capacity` bytes.
pub(super) async fn shake(
    client: &Credentials,
    server: &Credentials,
    expected: &[Identity],
    capacity: usize,
) -> (
    Result<Stream<DuplexStream>, Error>,
    Result<Stream<DuplexStream>, Error>,
) {
    let (near, far) = tokio::io::duplex(capacity);
    // The client's last flight leaves with its first flush or read, so the client has to go on.
    let connecting = async {
        let mut stream = connect(near, client, expected).await?;
        tokio::io::AsyncWriteExt::flush(&mut stream).await.unwrap();
        Ok(stream)
    };
    tokio::join!(connecting, accept(far, server))
}

/// A pair of good streams: client, server.
pub(super) async fn pair(capacity: usize) -> (Stream<DuplexStream>, Stream<DuplexStream>) {
    let authority = Authority::new();
    let (a, b) = (identity("a"), identity("b"));
    let (client, server) = (authority.credentials(&a), authority.credentials(&b));
    let (near, far) = shake(&client, &server, &[b], capacity).await;
    (near.unwrap(), far.unwrap())
}

/// Bytes that repeat with a period no record length shares.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect()
}

/// Two loopback TCP streams that are connected.
pub(super) async fn tcp() -> (tokio::net::TcpStream, tokio::net::TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// Stock rustls's view of an issued certificate.
pub(super) fn certified(issued: Issued) -> Arc<rustls::sign::CertifiedKey> {
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&issued.key).unwrap();
    Arc::new(rustls::sign::CertifiedKey::new(issued.chain, key))
}
