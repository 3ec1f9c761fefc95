//! The certificate authority: signs requests of proxies for the identities of their pods.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use tonic::{Request, Response, Status};

use super::server::check_token;
use api::istio::v1::auth::istio_certificate_service_server::IstioCertificateService;
use api::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

/// The name in the control plane's own certificate.
pub(super) const NAME: &str = "istiod.istio-system.svc";

/// An authority with a root of its own.
pub struct Authority {
    root: rcgen::Certificate,
    signer: Issuer<'static, KeyPair>,
    issued: Mutex<Vec<String>>,
}

impl Authority {
    /// Creates the root.
    ///
    /// # Errors
    /// When the certificate cannot be created.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "test root");
        let root = params.self_signed(&key).context("signing the root")?;
        Ok(Self {
            root,
            signer: Issuer::new(params, key),
            issued: Mutex::default(),
        })
    }

    /// The root certificate, PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// A certificate and its key, PEM, for the control plane itself.
    ///
    /// # Errors
    /// When the certificate cannot be created.
    pub fn server(&self) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![NAME.to_owned()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.signer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    fn sign(&self, request: &IstioCertificateRequest) -> Result<String, Status> {
        let invalid = |problem: &str| Status::invalid_argument(problem.to_owned());
        let metadata = request.metadata.as_ref();
        let named = metadata.and_then(|it| it.fields.get("ImpersonatedIdentity"));
        let identity = match named.and_then(|value| value.kind.as_ref()) {
            Some(prost_types::value::Kind::StringValue(identity)) => identity.clone(),
            _ => return Err(invalid("no ImpersonatedIdentity")),
        };
        let mut csr = CertificateSigningRequestParams::from_pem(&request.csr)
            .map_err(|error| invalid(&error.to_string()))?;
        let uri = identity
            .as_str()
            .try_into()
            .map_err(|_no_text| invalid("the identity is not a URI"))?;
        let validity = u64::try_from(request.validity_duration)
            .map_err(|_negative| invalid("a negative validity"))?;
        let now = SystemTime::now();
        csr.params.subject_alt_names = vec![SanType::URI(uri)];
        csr.params.not_before = (now - Duration::from_secs(60)).into();
        csr.params.not_after = (now + Duration::from_secs(validity)).into();
        csr.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        csr.params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let leaf = csr
            .signed_by(&self.signer)
            .map_err(|error| Status::internal(error.to_string()))?;
        let mut issued = self
            .issued
            .lock()
            .map_err(|_poisoned| Status::internal("poisoned"))?;
        issued.push(identity);
        Ok(leaf.pem())
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Authority {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        check_token(&request)?;
        let leaf = self.sign(request.get_ref())?;
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: vec![leaf, self.root_pem()],
        }))
    }
}
