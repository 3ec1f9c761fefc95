//! The embedded certificate authority: a root in a directory, leaves signed in this process.
//!
//! Several proxies may share the directory and start at the same moment, so it is set up under a
//! file lock and each file appears whole or not at all. The root key never leaves the directory;
//! a key file that others may read is refused rather than used. Leaves live shortly, so there is
//! no revocation.

mod error;
mod root;

use std::fs::{self, OpenOptions};
use std::future::Future;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer as Signer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use zeroize::Zeroizing;

pub use self::error::LocalCaError;
pub use self::root::load_roots;
use self::root::{BACKDATE, CERTIFICATE, KEY, create_root, damaged, exists, failed, serial, uri};
use mesh::Identity;
use tunnel::tls::{IssueError, Issued, Issuer};

const LOCK: &str = ".lock";

/// The lifetime of leaves that is suggested.
pub const DEFAULT_LEAF_TTL: Duration = Duration::from_secs(24 * 3600);
/// The shortest lifetime of leaves; below it renewal cannot keep up with a slow machine.
pub const MIN_LEAF_TTL: Duration = Duration::from_secs(2);

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

#[cfg(test)]
mod tests;
