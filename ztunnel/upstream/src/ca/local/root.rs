//! The files of the root: created atomically, and read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::error::LocalCaError;

pub(super) const CERTIFICATE: &str = "root-cert.pem";
pub(super) const KEY: &str = "root-key.pem";

/// The time by which certificates are backdated, for nodes whose clocks differ.
pub(super) const BACKDATE: Duration = Duration::from_secs(120);
/// The lifetime of a new root.
const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Reads the certificates of a PEM file, at least one.
///
/// # Errors
/// When the file cannot be read, is not PEM, or holds no certificate.
pub fn load_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, LocalCaError> {
    let pem = fs::read(path).map_err(failed("read", path))?;
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let roots = roots.map_err(damaged(path))?;
    if roots.is_empty() {
        return Err(damaged(path)("it holds no certificate"));
    }
    Ok(roots)
}

pub(super) fn create_root(directory: &Path, trust_domain: &str) -> Result<(), LocalCaError> {
    let (certificate, key) =
        generate_root(trust_domain).map_err(|error| LocalCaError::Generate {
            trust_domain: trust_domain.to_owned(),
            why: error.to_string(),
        })?;
    // The certificate is written last: it marks the root as complete.
    write_atomically(directory, KEY, key.as_bytes(), 0o600)?;
    write_atomically(directory, CERTIFICATE, certificate.as_bytes(), 0o644)
}

pub(super) fn generate_root(
    trust_domain: &str,
) -> Result<(String, Zeroizing<String>), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial());
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(now + ROOT_TTL);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, trust_domain);
    params
        .distinguished_name
        .push(DnType::CommonName, "mesh root");
    // SPIFFE X.509-SVID, section 3.1: a signing certificate may name its trust domain.
    params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), Zeroizing::new(key.serialize_pem())))
}

pub(super) fn uri(text: &str) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(Ia5String::try_from(text)?))
}

/// A positive random serial number (RFC 5280, section 4.1.2.2, allows 20 bytes).
pub(super) fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    // Positive, and no leading zero byte that an encoder would have to drop.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// Writes a file with its content and permissions atomically.
fn write_atomically(
    directory: &Path,
    name: &str,
    content: &[u8],
    mode: u32,
) -> Result<(), LocalCaError> {
    let (unfinished, path) = (directory.join(format!(".{name}.new")), directory.join(name));
    // A leftover of a crash may have other permissions.
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &unfinished)(error));
        }
        _ => {}
    }
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&unfinished)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(failed("write", &path))
}

pub(super) fn exists(path: &Path) -> Result<bool, LocalCaError> {
    path.try_exists().map_err(failed("read", path))
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LocalCaError {
    let path = path.to_owned();
    move |source| LocalCaError::Io {
        action,
        path,
        source,
    }
}

pub(super) fn damaged<E: ToString>(path: &Path) -> impl FnOnce(E) -> LocalCaError {
    let path = path.to_owned();
    move |why| LocalCaError::Damaged {
        path,
        why: why.to_string(),
    }
}
