//! The answer of a certificate authority: certificates of a valid answer and of others, in any
//! order and damaged. An accepted chain starts with a certificate for the requested key.
#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use mesh::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use upstream::ca::istiod::answer;
use ztunnel_fuzz::fuzz_target;
use ztunnel_fuzz::pem;

struct Answers {
    key: KeyPair,
    identity: Identity,
    /// A valid leaf, its intermediate, its root; a leaf for the same key and identity from another
    /// authority of the same name; a leaf for another key; a leaf for another identity.
    certificates: Vec<Vec<u8>>,
}

static ANSWERS: LazyLock<Answers> = LazyLock::new(|| {
    let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let leaf = |uri: &str| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params
    };
    let (leaf_key, name) = (key(), "spiffe://td/ns/a/sa/b");
    let (root_key, root) = (key(), authority("root"));
    let root_certificate = root.self_signed(&root_key).unwrap();
    let root = Issuer::new(root, root_key);
    let (intermediate_key, intermediate) = (key(), authority("intermediate"));
    let intermediate_certificate = intermediate.signed_by(&intermediate_key, &root).unwrap();
    let intermediate = Issuer::new(intermediate, intermediate_key);
    let (impostor_key, impostor) = (key(), authority("root"));
    let impostor = Issuer::new(impostor, impostor_key);
    let certificates = vec![
        leaf(name)
            .signed_by(&leaf_key, &intermediate)
            .unwrap()
            .der()
            .to_vec(),
        intermediate_certificate.der().to_vec(),
        root_certificate.der().to_vec(),
        leaf(name)
            .signed_by(&leaf_key, &impostor)
            .unwrap()
            .der()
            .to_vec(),
        leaf(name)
            .signed_by(&key(), &intermediate)
            .unwrap()
            .der()
            .to_vec(),
        leaf("spiffe://td/ns/a/sa/c")
            .signed_by(&leaf_key, &intermediate)
            .unwrap()
            .der()
            .to_vec(),
    ];
    Answers {
        key: leaf_key,
        identity: name.parse().unwrap(),
        certificates,
    }
});

#[derive(Debug, Arbitrary)]
enum Piece<'a> {
    Certificate(u8),
    Damaged { which: u8, at: u16, with: u8 },
    Der(&'a [u8]),
    Text(&'a str),
}

fuzz_target!(|parts: Vec<Vec<Piece<'_>>>| {
    let all = &*ANSWERS;
    let certificate = |which: u8| &all.certificates[usize::from(which) % all.certificates.len()];
    let text = |piece: &Piece<'_>| match piece {
        Piece::Certificate(which) => pem("CERTIFICATE", certificate(*which)),
        Piece::Damaged { which, at, with } => {
            let mut der = certificate(*which).clone();
            let at = usize::from(*at) % der.len();
            der[at] ^= with;
            pem("CERTIFICATE", &der)
        }
        Piece::Der(der) => pem("CERTIFICATE", der),
        Piece::Text(text) => (*text).to_owned(),
    };
    let texts: Vec<String> = parts
        .iter()
        .map(|part| part.iter().map(text).collect())
        .collect();
    let read = answer::read(&texts, &all.key, &all.identity);
    let plain: Vec<Vec<u8>> = parts
        .iter()
        .map(|part| {
            part.iter()
                .map(|piece| match piece {
                    Piece::Certificate(which) => which % 6,
                    _ => u8::MAX,
                })
                .collect()
        })
        .collect();
    if plain == [vec![0], vec![1], vec![2]] {
        assert!(
            read.is_ok(),
            "the valid answer was refused: {:?}",
            read.err()
        );
    }
    if let Ok(issued) = read {
        let leaf = &*issued.chain[0];
        assert!(!issued.roots.is_empty());
        // The answer may contain the root of another authority: its sender is trusted.
        let known = [&all.certificates[0], &all.certificates[3]];
        assert!(known.iter().any(|known| leaf == known.as_slice()));
    }
});
