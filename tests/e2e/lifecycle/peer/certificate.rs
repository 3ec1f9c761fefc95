//! Certificates of a test peer.

use std::fs;
use std::path::Path;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate authority.
pub(crate) struct Authority(Issuer<'static, KeyPair>);

/// A certificate and its key.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Clone for Leaf {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl Authority {
    /// The authority of the mesh, from the directory that its proxies share.
    pub(crate) fn of_mesh(world: &Path) -> Self {
        let read = |name: &str| fs::read_to_string(world.join("ca").join(name)).unwrap();
        let key = KeyPair::from_pem(&read("root-key.pem")).unwrap();
        Self(Issuer::from_ca_cert_pem(&read("root-cert.pem"), key).unwrap())
    }

    /// An authority outside the mesh, with a name like the mesh's.
    pub(crate) fn foreign() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(Issuer::new(params, key))
    }

    /// A revocation list with this serial number, as PEM.
    pub(crate) fn revoke(&self, serial: SerialNumber) -> String {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: serial,
                revocation_time: date_time_ymd(2021, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0).unwrap().pem().unwrap()
    }

    /// A leaf with these URIs, for client and server.
    pub(crate) fn leaf(&self, uris: &[&str]) -> Leaf {
        self.changed(uris, |_params| {})
    }

    /// The same leaf and its key, as PEM.
    pub(crate) fn leaf_pem(&self, uris: &[&str]) -> [String; 2] {
        let (certificate, key) = self.issue(uris, |_params| {});
        [certificate.pem(), key.serialize_pem()]
    }

    /// A leaf with changed parameters.
    pub(crate) fn changed(&self, uris: &[&str], change: impl Fn(&mut CertificateParams)) -> Leaf {
        let (certificate, key) = self.issue(uris, change);
        Leaf {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        }
    }

    fn issue(
        &self,
        uris: &[&str],
        change: impl Fn(&mut CertificateParams),
    ) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI(Ia5String::try_from((*uri).to_owned()).unwrap()))
            .collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        (params.signed_by(&key, &self.0).unwrap(), key)
    }
}
