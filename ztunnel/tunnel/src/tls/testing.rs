//! Shared by the tests of this module: a certificate authority that can also issue invalid
//! certificates, and pairs of connected streams.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer as Signer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::DuplexStream;

use super::{Credentials, Error, Issued, Revocations, Stream, accept, connect};
use mesh::Identity;

/// A certificate authority.
pub(super) struct TestCa {
    root: CertificateDer<'static>,
    /// The certificates between its leaves and the root.
    above: Vec<CertificateDer<'static>>,
    signer: Signer<'static, KeyPair>,
}

/// A leaf to issue; the default is valid.
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

impl TestCa {
    pub(super) fn new() -> Self {
        let (params, key) = Self::draft("test root");
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            root,
            above: Vec::new(),
            signer: Signer::new(params, key),
        }
    }

    /// An intermediate CA, whose certificate this one signs.
    pub(super) fn intermediate(&self, name: &str) -> Self {
        let (params, key) = Self::draft(name);
        let certificate = params.signed_by(&key, &self.signer).unwrap();
        let mut above = self.above.clone();
        above.insert(0, certificate.der().clone());
        Self {
            root: self.root.clone(),
            above,
            signer: Signer::new(params, key),
        }
    }

    fn draft(name: &str) -> (CertificateParams, KeyPair) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params, key)
    }

    /// Its revocation list.
    pub(super) fn revoke(
        &self,
        certificates: &[&CertificateDer<'_>],
        next_update: SystemTime,
    ) -> rcgen::CertificateRevocationList {
        let this_update = SystemTime::now() - Duration::from_secs(7200);
        let revoked = |certificate: &&CertificateDer<'_>| {
            let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
            RevokedCertParams {
                serial_number: SerialNumber::from_slice(parsed.raw_serial()),
                revocation_time: this_update.into(),
                reason_code: None,
                invalidity_date: None,
            }
        };
        let list = CertificateRevocationListParams {
            this_update: this_update.into(),
            next_update: next_update.into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: certificates.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.signer).unwrap()
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
            chain: [&[certificate.der().clone()], &self.above[..]].concat(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            roots: vec![self.root.clone()],
        }
    }

    /// Valid credentials.
    pub(super) fn credentials(&self, identity: &Identity) -> Credentials {
        Credentials::new(
            identity,
            self.issue(&Leaf::of(identity)),
            &Revocations::default(),
        )
        .unwrap()
    }

    /// Credentials that present `leaf`, which may be invalid, and trust this root.
    pub(super) fn unchecked_credentials(&self, identity: &Identity, leaf: &Leaf) -> Credentials {
        Credentials::unchecked(identity, self.issue(leaf))
    }
}

pub(super) fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "default", account).unwrap()
}

/// Runs both ends of a handshake over a pipe of `capacity` bytes.
pub(super) async fn handshake_pair(
    client: &Credentials,
    server: &Credentials,
    expected: &[Identity],
    capacity: usize,
) -> (
    Result<Stream<DuplexStream>, Error>,
    Result<Stream<DuplexStream>, Error>,
) {
    let (local, remote) = tokio::io::duplex(capacity);
    // The client's last flight is sent with its first flush or read.
    let connecting = async {
        let mut stream = connect(local, client, expected).await?;
        tokio::io::AsyncWriteExt::flush(&mut stream).await.unwrap();
        Ok(stream)
    };
    tokio::join!(connecting, accept(remote, server))
}

/// An established session: client, server.
pub(super) async fn pair(capacity: usize) -> (Stream<DuplexStream>, Stream<DuplexStream>) {
    let ca = TestCa::new();
    let (a, b) = (identity("a"), identity("b"));
    let (client, server) = (ca.credentials(&a), ca.credentials(&b));
    let (local, remote) = handshake_pair(&client, &server, &[b], capacity).await;
    (local.unwrap(), remote.unwrap())
}

/// Bytes whose period differs from every record length.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect()
}

/// Two loopback TCP streams that are connected.
pub(super) async fn tcp() -> (tokio::net::TcpStream, tokio::net::TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (local, remote) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
    let (local, remote) = (local.unwrap(), remote.unwrap().0);
    local.set_nodelay(true).unwrap();
    remote.set_nodelay(true).unwrap();
    (local, remote)
}

/// An issued certificate as rustls takes it.
pub(super) fn certified(issued: Issued) -> Arc<rustls::sign::CertifiedKey> {
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&issued.key).unwrap();
    Arc::new(rustls::sign::CertifiedKey::new(issued.chain, key))
}
