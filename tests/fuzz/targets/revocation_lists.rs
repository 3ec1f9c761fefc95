//! A file of certificate revocation lists. A DER list is the same when it is wrapped in PEM.
#![no_main]

use std::path::Path;

use tunnel::tls::RevocationList;
use ztunnel_fuzz::fuzz_target;

fn parse(bytes: &[u8]) -> Option<Vec<RevocationList>> {
    RevocationList::parse_all(Path::new("crl.pem"), bytes).ok()
}

fuzz_target!(|bytes: &[u8]| {
    let Some(lists) = parse(bytes) else {
        return;
    };
    assert!((1..=256).contains(&lists.len()));
    for list in &lists {
        // An entry has at least three bytes of DER for the serial number and fifteen for the date.
        assert!(list.issuer().chars().count() <= 256 && list.revoked_count() <= bytes.len() / 18);
    }
    if bytes.first() == Some(&0x30) {
        let pem = ztunnel_fuzz::pem("X509 CRL", bytes);
        let again = parse(pem.as_bytes()).unwrap();
        assert!(again == lists);
        let numbers = |lists: &[RevocationList]| -> Vec<_> {
            let all = lists.iter();
            all.map(|list| (list.issuer().to_owned(), list.revoked_count()))
                .collect()
        };
        assert_eq!(numbers(&again), numbers(&lists));
    }
});
