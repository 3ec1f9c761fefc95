//! The embedded certificate authority: a root in a directory signs short-lived leaf certificates in
//! this process.
//!
//! Several proxies may share the directory and start at the same moment, so it is set up under a
//! file lock and each file is replaced atomically. The root key never leaves the directory, and a
//! key file that other users can read is refused. Leaf certificates are short-lived, so there is no
//! revocation.

mod error;
mod root;
mod signer;

use std::fs::{self, OpenOptions};
use std::future::Future;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use rcgen::{Issuer as RootIssuer, KeyPair};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use zeroize::Zeroizing;

pub use self::error::{LocalCaError, MIN_LEAF_TTL};
pub use self::root::load_roots;
use self::root::{CERTIFICATE, KEY, create_root, damaged, exists, failed};
use self::signer::RootSigner;
use super::{CertificateSigner, SignError, key};
use mesh::Identity;
use tunnel::tls::{IssueError, Issued, Issuer};

const LOCK: &str = ".lock";

/// The default lifetime of leaf certificates.
pub const DEFAULT_LEAF_TTL: Duration = Duration::from_secs(24 * 3600);
/// The embedded authority of one trust domain.
pub struct LocalCa {
    directory: PathBuf,
    leaf_ttl: Duration,
    root: CertificateDer<'static>,
    signer: RootSigner,
}

impl LocalCa {
    /// Opens the authority in `directory`, and creates the directory and the root if they are
    /// missing. Blocks while another process does the same.
    ///
    /// # Errors
    /// When the files cannot be used; the message says how to fix it.
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
            // A key without a certificate is left by a crash; it has never been used.
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
        let issuer = RootIssuer::from_ca_cert_der(&root, pair).map_err(damaged(&certificate))?;
        Ok(Self {
            directory: directory.to_owned(),
            leaf_ttl,
            root,
            signer: RootSigner {
                trust_domain: trust_domain.to_owned(),
                root_not_after,
                issuer,
            },
        })
    }

    fn issue_now(&self, identity: &Identity) -> Result<Issued, IssueError> {
        let refused = |why: String| IssueError::Refused {
            issuer: self.directory.display().to_string(),
            why,
        };
        let (key, request) = key::generate(identity).map_err(|error| refused(error.to_string()))?;
        let chain = self
            .signer
            .sign(request.der(), identity, self.leaf_ttl)
            .map_err(|error| refused(error.to_string()))?;
        Ok(Issued {
            chain,
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            roots: vec![self.root.clone()],
        })
    }
}

impl CertificateSigner for LocalCa {
    fn sign(
        &self,
        request: &CertificateSigningRequestDer<'_>,
        identity: &Identity,
        lifetime: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        self.signer.sign(request, identity, lifetime)
    }
}

impl Issuer for LocalCa {
    /// Generates a key and a request, and signs the request at once.
    fn issue<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send + 'a>> {
        Box::pin(std::future::ready(self.issue_now(identity)))
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
