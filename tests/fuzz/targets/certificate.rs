//! A peer's certificate. The identity that is read from it occurs in its bytes.
#![no_main]

use rustls_pki_types::CertificateDer;
use tunnel::tls::identity_of;
use ztunnel_fuzz::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(identity) = identity_of(&CertificateDer::from(bytes)) {
        let text = identity.as_str().as_bytes();
        assert!(
            bytes.windows(text.len()).any(|part| part == text),
            "{identity}"
        );
        assert_eq!(identity.as_str().parse().as_ref(), Ok(&identity));
    }
});
