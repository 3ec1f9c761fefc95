//! A file of revocation lists. A list in DER is the same list when it is wrapped in PEM.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ztunnel::fuzzing::tls::revocation_lists;

fuzz_target!(|bytes: &[u8]| {
    let Some(lists) = revocation_lists(bytes) else {
        return;
    };
    assert!((1..=256).contains(&lists.len()));
    for (issuer, revoked) in &lists {
        // A serial number takes three bytes of DER and its date fifteen at least.
        assert!(issuer.chars().count() <= 256 && *revoked <= bytes.len() / 18);
    }
    if bytes.first() == Some(&0x30) {
        let pem = ztunnel_fuzz::pem("X509 CRL", bytes);
        assert_eq!(revocation_lists(pem.as_bytes()), Some(lists));
    }
});
