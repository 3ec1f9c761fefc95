//! The embedded certificate authority: a root in a directory, leaves signed in this process.
//!
//! Several proxies may share the directory and start at the same moment, so it is set up under a
//! file lock and each file appears whole or not at all. The root key never leaves the directory;
//! a key file that others may read is refused rather than used. Leaves live shortly, so there is
//! no revocation.

use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer as Signer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::mesh::Identity;
use crate::tls::{Fault, IssueError, Issued, Issuer};

const CERTIFICATE: &str = "root-cert.pem";
const KEY: &str = "root-key.pem";
const LOCK: &str = ".lock";

/// How far certificates are dated back, for nodes whose clocks differ.
const BACKDATE: Duration = Duration::from_secs(120);
/// How long a new root lives.
const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The lifetime of leaves that is suggested.
pub const DEFAULT_LEAF_TTL: Duration = Duration::from_secs(24 * 3600);
/// The shortest lifetime of leaves; below it renewal cannot keep up with a slow machine.
pub const MIN_LEAF_TTL: Duration = Duration::from_secs(2);

/// Why the embedded authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalCaError {
    /// A file or the directory cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key file is not private.
    #[error(
        "the root key {path} may be read by others (mode {mode:03o}); whoever could read it can \
         issue certificates of the mesh: replace the root if in doubt, else `chmod 600` it"
    )]
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The certificate is there without its key.
    #[error("{path} is missing but the root certificate is there: restore the key, or remove both")]
    KeyMissing {
        /// The key's file.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The key belongs to another certificate.
    #[error("the root key and the root certificate in {directory} do not belong together")]
    Mismatch {
        /// Where both are.
        directory: PathBuf,
    },
    /// A setting that cannot work.
    #[error("a leaf lifetime of {ttl:?} is too short, the least is {MIN_LEAF_TTL:?}")]
    LeafTtl {
        /// The setting.
        ttl: Duration,
    },
    /// The root could not be made.
    #[error("cannot create a root certificate for {trust_domain:?}: {why}")]
    Generate {
        /// The mesh's trust domain.
        trust_domain: String,
        /// What went wrong.
        why: String,
    },
}

impl LocalCaError {
    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::KeyExposed { .. } => "key_exposed",
            Self::KeyMissing { .. } => "key_missing",
            Self::Damaged { .. } => "damaged",
            Self::Mismatch { .. } => "mismatch",
            Self::LeafTtl { .. } => "leaf_ttl",
            Self::Generate { .. } => "generate",
        }
    }

    /// Who has to act: always whoever set this node up.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Generate { .. } => Fault::Us,
            _ => Fault::Mesh,
        }
    }
}

/// The embedded authority of one trust domain.
pub struct LocalCa {
    directory: PathBuf,
    trust_domain: String,
    leaf_ttl: Duration,
    root: CertificateDer<'static>,
    root_not_after: OffsetDateTime,
    signer: Signer<'static, KeyPair>,
}

impl LocalCa {
    /// Opens the authority in `directory`, creating the directory and the root when they are
    /// missing. Blocks while another process does the same.
    ///
    /// # Errors
    /// When the files cannot be used; the text says how to mend it.
    pub fn open(
        directory: &Path,
        trust_domain: &str,
        leaf_ttl: Duration,
    ) -> Result<Self, LocalCaError> {
        if leaf_ttl < MIN_LEAF_TTL {
            return Err(LocalCaError::LeafTtl { ttl: leaf_ttl });
        }
        fs::create_dir_all(directory).map_err(failed("create", directory))?;
        let lock_path = directory.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        // Released when the file is closed.
        lock.lock().map_err(failed("lock", &lock_path))?;
        let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
        match (exists(&certificate)?, exists(&key)?) {
            (true, true) => {}
            (true, false) => return Err(LocalCaError::KeyMissing { path: key }),
            // A key alone is what a crash leaves: nobody has seen a certificate of it.
            (false, _) => create_root(directory, trust_domain)?,
        }
        Self::load(directory, trust_domain, leaf_ttl)
    }

    /// The root certificate.
    #[must_use]
    pub const fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    fn load(
        directory: &Path,
        trust_domain: &str,
        leaf_ttl: Duration,
    ) -> Result<Self, LocalCaError> {
        let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
        let mode = fs::metadata(&key)
            .map_err(failed("read", &key))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            return Err(LocalCaError::KeyExposed {
                path: key,
                mode: mode & 0o777,
            });
        }
        let pem = Zeroizing::new(fs::read_to_string(&key).map_err(failed("read", &key))?);
        let pair = KeyPair::from_pem(&pem).map_err(damaged(&key))?;
        let root = load_roots(&certificate)?.swap_remove(0);
        let (root_key, root_not_after) = {
            let (_rest, parsed) =
                x509_parser::parse_x509_certificate(&root).map_err(damaged(&certificate))?;
            let public = parsed.public_key().subject_public_key.data.to_vec();
            (public, parsed.validity().not_after.to_datetime())
        };
        if root_key != pair.public_key_raw() {
            return Err(LocalCaError::Mismatch {
                directory: directory.to_owned(),
            });
        }
        let signer = Signer::from_ca_cert_der(&root, pair).map_err(damaged(&certificate))?;
        Ok(Self {
            directory: directory.to_owned(),
            trust_domain: trust_domain.to_owned(),
            leaf_ttl,
            root,
            root_not_after,
            signer,
        })
    }

    fn sign(&self, identity: &Identity) -> Result<Issued, IssueError> {
        let refused = |why: String| IssueError::Refused {
            issuer: self.directory.display().to_string(),
            why,
        };
        if identity.trust_domain() != self.trust_domain {
            return Err(refused(format!(
                "it serves the trust domain {}",
                self.trust_domain
            )));
        }
        let now = SystemTime::now();
        let not_after = OffsetDateTime::from(now + self.leaf_ttl).min(self.root_not_after);
        if not_after <= OffsetDateTime::from(now) {
            return Err(refused(
                "its root certificate has expired: remove it to get a new one".into(),
            ));
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|error| refused(error.to_string()))?;
        let mut params = CertificateParams::default();
        params.serial_number = Some(serial());
        params.not_before = OffsetDateTime::from(now - BACKDATE);
        params.not_after = not_after;
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names =
            vec![uri(identity.as_str()).map_err(|error| refused(error.to_string()))?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let leaf = params
            .signed_by(&key, &self.signer)
            .map_err(|error| refused(error.to_string()))?;
        Ok(Issued {
            chain: vec![leaf.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            roots: vec![self.root.clone()],
        })
    }
}

impl Issuer for LocalCa {
    /// Signs at once: two P-256 operations, far below a millisecond.
    fn issue<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send + 'a>> {
        Box::pin(std::future::ready(self.sign(identity)))
    }
}

impl std::fmt::Debug for LocalCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalCa")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// Reads the certificates of a PEM file; there is at least one.
///
/// # Errors
/// When the file cannot be read, is not PEM, or holds no certificate.
pub fn load_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, LocalCaError> {
    let pem = fs::read(path).map_err(failed("read", path))?;
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let roots = roots.map_err(damaged(path))?;
    if roots.is_empty() {
        return Err(damaged(path)("there is no certificate in it"));
    }
    Ok(roots)
}

fn create_root(directory: &Path, trust_domain: &str) -> Result<(), LocalCaError> {
    let (certificate, key) =
        generate_root(trust_domain).map_err(|error| LocalCaError::Generate {
            trust_domain: trust_domain.to_owned(),
            why: error.to_string(),
        })?;
    // The certificate last: it says that the root is complete.
    write_whole(directory, KEY, key.as_bytes(), 0o600)?;
    write_whole(directory, CERTIFICATE, certificate.as_bytes(), 0o644)
}

fn generate_root(trust_domain: &str) -> Result<(String, Zeroizing<String>), rcgen::Error> {
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

fn uri(text: &str) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(Ia5String::try_from(text)?))
}

/// A positive random serial number (RFC 5280, section 4.1.2.2, allows 20 bytes).
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    // Positive, and no leading zero byte that an encoder would have to drop.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// Makes a file appear with its whole content and its permissions, or not at all.
fn write_whole(
    directory: &Path,
    name: &str,
    content: &[u8],
    mode: u32,
) -> Result<(), LocalCaError> {
    let (unfinished, path) = (directory.join(format!(".{name}.new")), directory.join(name));
    // A leftover of a crash might have other permissions.
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

fn exists(path: &Path) -> Result<bool, LocalCaError> {
    path.try_exists().map_err(failed("read", path))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LocalCaError {
    let path = path.to_owned();
    move |source| LocalCaError::Io {
        action,
        path,
        source,
    }
}

fn damaged<E: ToString>(path: &Path) -> impl FnOnce(E) -> LocalCaError {
    let path = path.to_owned();
    move |why| LocalCaError::Damaged {
        path,
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests;
