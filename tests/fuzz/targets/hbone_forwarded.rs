//! A `forwarded` header. The address that is read comes back from what we would write of it.
#![no_main]

use http::HeaderValue;
use libfuzzer_sys::fuzz_target;
use ztunnel::fuzzing::hbone::{forwarded, forwarded_of};

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = HeaderValue::from_bytes(bytes) else {
        return;
    };
    if let Some(address) = forwarded(&value) {
        let written = forwarded_of(address).unwrap();
        assert_eq!(forwarded(&written), Some(address));
    }
});
