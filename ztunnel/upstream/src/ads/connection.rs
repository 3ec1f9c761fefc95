//! One connection: TLS to the control plane, and the metadata that authenticates the node.

use std::error::Error as StdError;
use std::io;
use std::path::Path;

use rustls::CertificateError;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::AsyncReadExt as _;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use zeroize::Zeroizing;

use super::config::{Root, ValidConfig};
use super::error::Error;

/// The largest file of root certificates, in bytes.
const ROOTS_MAX: u64 = 4 << 20;
/// The largest token, in bytes; those of Kubernetes have about 1 KiB.
const TOKEN_MAX: u64 = 64 << 10;
/// Flow-control windows, in bytes, large enough that a large push does not wait for round trips.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Connects to the control plane.
pub(super) async fn connect(config: &ValidConfig) -> Result<Channel, Error> {
    let settings = &config.settings;
    let failed = |error: tonic::transport::Error| Error::Connect {
        address: settings.address.clone(),
        why: explain(&error, &settings.root),
    };
    let mut endpoint = Endpoint::from(config.uri.clone())
        .connect_timeout(settings.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(settings.keepalive_interval)
        .keep_alive_timeout(settings.keepalive_timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    if config.is_encrypted() {
        endpoint = endpoint.tls_config(tls(config).await?).map_err(failed)?;
    }
    if let Some(origin) = &config.origin {
        endpoint = endpoint.origin(origin.clone());
    }
    // The endpoint's own limit does not cover every step of the handshake.
    let connecting = tokio::time::timeout(settings.connect_timeout, endpoint.connect());
    match connecting.await {
        Ok(connected) => connected.map_err(failed),
        Err(_elapsed) => Err(Error::ConnectTimeout {
            address: settings.address.clone(),
            after: settings.connect_timeout,
        }),
    }
}

async fn tls(config: &ValidConfig) -> Result<ClientTlsConfig, Error> {
    let tls = match &config.settings.root {
        Root::System => ClientTlsConfig::new().with_native_roots(),
        Root::File(path) => {
            let pem = roots(path).await?;
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
        }
    };
    Ok(match &config.settings.alt_hostname {
        Some(name) => tls.domain_name(name),
        None => tls,
    })
}

async fn roots(path: &Path) -> Result<Vec<u8>, Error> {
    let refuse = |why: String| Error::Root {
        path: path.to_owned(),
        why,
    };
    let pem = read(path, ROOTS_MAX)
        .await
        .map_err(|error| refuse(error.to_string()))?;
    let mut found = 0_usize;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        certificate.map_err(|error| refuse(error.to_string()))?;
        found += 1;
    }
    if found == 0 {
        return Err(refuse("the file holds no PEM certificate".to_owned()));
    }
    Ok(pem.to_vec())
}

/// The metadata of the request that opens the stream. The token is read each time, because
/// Kubernetes replaces it before it expires.
pub(super) async fn metadata(config: &ValidConfig) -> Result<MetadataMap, Error> {
    let mut metadata = MetadataMap::new();
    if let Some(path) = &config.settings.token
        && config.is_encrypted()
    {
        metadata.insert("authorization", bearer(path).await?);
    }
    for (name, value) in &config.headers {
        metadata.insert(name.clone(), value.clone());
    }
    Ok(metadata)
}

async fn bearer(path: &Path) -> Result<AsciiMetadataValue, Error> {
    let refuse = |why: String| Error::Token {
        path: path.to_owned(),
        why,
    };
    let bytes = read(path, TOKEN_MAX)
        .await
        .map_err(|error| refuse(error.to_string()))?;
    let token = std::str::from_utf8(&bytes).map_or("", str::trim);
    if token.is_empty() {
        return Err(refuse("the file holds no token".to_owned()));
    }
    let header = Zeroizing::new(format!("Bearer {token}"));
    let mut header = AsciiMetadataValue::try_from(header.as_str()).map_err(|_not_ascii| {
        refuse("the file holds characters that are not allowed in a token".to_owned())
    })?;
    header.set_sensitive(true);
    Ok(header)
}

async fn read(path: &Path, limit: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = tokio::fs::File::open(path).await?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(limit + 1).read_to_end(&mut bytes).await?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) {
        return Ok(bytes);
    }
    Err(io::Error::other(format!(
        "the file is larger than {limit} bytes"
    )))
}

/// The chain of causes in one line, and the likely cause.
fn explain(error: &tonic::transport::Error, root: &Root) -> String {
    let mut text = String::new();
    let mut likely = None;
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        let message = cause.to_string();
        // Some errors repeat the message of their source.
        if !text.contains(&message) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&message);
        }
        likely = likely.or_else(|| likely_cause(cause, root));
        next = cause.source();
    }
    if let Some(likely) = likely {
        text.push_str(&format!(" ({likely})"));
    }
    text
}

fn likely_cause(cause: &(dyn StdError + 'static), root: &Root) -> Option<String> {
    // The source of an I/O error is the source of the wrapped error, not the wrapped error itself.
    let wrapped = cause
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let error = wrapped.or_else(|| cause.downcast_ref::<rustls::Error>())?;
    match error {
        // The roots of two meshes often have the same name; then the signature differs.
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => Some(match root {
            Root::File(path) => format!("its certificate is not signed by a root in {}", path.display()),
            Root::System => "its certificate is not signed by a root that this system trusts".to_owned(),
        }),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Some(
            "its certificate is for other names: set ALT_XDS_HOSTNAME to a name of the certificate"
                .to_owned(),
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => Some("its certificate has expired, or the clock of this node or of the control plane is wrong".to_owned()),
        _ => None,
    }
}
