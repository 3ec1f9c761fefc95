//! Signing of certificate requests.

use rcgen::{BasicConstraints, CertificateParams, IsCa, PublicKeyData as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::super::root::uri;
use super::*;

const LIFETIME: Duration = Duration::from_secs(600);

fn parsed<'a>(leaf: &'a CertificateDer<'_>) -> X509Certificate<'a> {
    X509Certificate::from_der(leaf).unwrap().1
}

#[test]
fn a_signed_chain_verifies_with_the_requesters_key() {
    let directory = tempfile::tempdir().unwrap();
    let ca = open(directory.path()).unwrap();
    let (key, request) = key::generate(&web()).unwrap();
    let chain = ca.sign(request.der(), &web(), LIFETIME).unwrap();
    let issued = Issued {
        chain,
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        roots: vec![ca.root().clone()],
    };
    issued.check(&web()).unwrap();
    assert!(Credentials::new(&web(), issued, &Revocations::default()).is_ok());
}

#[test]
fn the_certificate_has_the_key_of_the_request_which_does_not_contain_the_private_key() {
    let directory = tempfile::tempdir().unwrap();
    let ca = open(directory.path()).unwrap();
    let (key, request) = key::generate(&web()).unwrap();
    let chain = ca.sign(request.der(), &web(), LIFETIME).unwrap();
    assert_eq!(
        parsed(&chain[0]).public_key().raw,
        key.subject_public_key_info()
    );
    // The private scalar of P-256 is the 32 bytes after a fixed prefix of the PKCS #8 form.
    let private = key.serialize_der()[36..68].to_vec();
    let holds = |bytes: &[u8]| bytes.windows(32).any(|window| window == private);
    assert!(holds(&key.serialize_der()) && !holds(request.der()) && !holds(&chain[0]));
}

#[test]
fn a_request_with_a_broken_signature_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ca = open(directory.path()).unwrap();
    let (_, request) = key::generate(&web()).unwrap();
    let good = request.der().to_vec();
    let refused = |bytes: Vec<u8>| {
        let signed = ca.sign(&bytes.into(), &web(), LIFETIME);
        signed.unwrap_err().reason()
    };
    let mut broken = good.clone();
    *broken.last_mut().unwrap() ^= 1;
    assert_eq!(refused(broken), "csr");
    // The request of one key with the signature of another one.
    let (_, other) = key::generate(&web()).unwrap();
    let signature = 64;
    let mut mixed = good.clone();
    let start = mixed.len() - signature;
    mixed[start..].copy_from_slice(&other.der()[other.der().len() - signature..]);
    assert_eq!(refused(mixed), "csr");
    assert_eq!(refused(good[..good.len() / 2].to_vec()), "csr");
    assert_eq!(refused(Vec::new()), "csr");
}

#[test]
fn names_and_extensions_of_the_request_are_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let ca = open(directory.path()).unwrap();
    let key = KeyPair::generate().unwrap();
    let other = "spiffe://cluster.local/ns/kube-system/sa/admin";
    let mut params = CertificateParams::new(["admin.example".to_owned()]).unwrap();
    params.subject_alt_names.push(uri(other).unwrap());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let request = params.serialize_request(&key);
    let Ok(request) = request else {
        // rcgen does not write a request for a CA.
        return;
    };
    let chain = ca.sign(request.der(), &web(), LIFETIME).unwrap();
    let leaf = parsed(&chain[0]);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(
        names.value.general_names,
        [x509_parser::extensions::GeneralName::URI(web().as_str())]
    );
    assert!(!leaf.is_ca());
    assert_eq!(leaf.subject().iter().count(), 0);
}

#[test]
fn the_certificate_expires_after_the_requested_lifetime_or_with_the_root() {
    let directory = tempfile::tempdir().unwrap();
    let ca = open(directory.path()).unwrap();
    let (_, request) = key::generate(&web()).unwrap();
    let lifetime = |wanted| {
        let chain = ca.sign(request.der(), &web(), wanted).unwrap();
        let validity = parsed(&chain[0]).validity().clone();
        validity.not_after.timestamp() - validity.not_before.timestamp()
    };
    assert!((715..=725).contains(&lifetime(LIFETIME)));
    let root = parsed(ca.root()).validity().not_after.timestamp();
    let chain = ca
        .sign(request.der(), &web(), Duration::from_secs(1 << 32))
        .unwrap();
    assert_eq!(parsed(&chain[0]).validity().not_after.timestamp(), root);
}

#[test]
fn an_identity_of_another_trust_domain_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ca = open(directory.path()).unwrap();
    let foreign = Identity::new("elsewhere", "default", "web").unwrap();
    let (_, request) = key::generate(&foreign).unwrap();
    let error = ca.sign(request.der(), &foreign, LIFETIME).unwrap_err();
    assert_eq!(error.reason(), "trust_domain");
}
