//! A `forwarded` header. The decoded client address is the same after encoding and decoding.
#![no_main]

use http::HeaderValue;
use tunnel::hbone::forwarded::{decode, encode};
use ztunnel_fuzz::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = HeaderValue::from_bytes(bytes) else {
        return;
    };
    let read = decode(&value);
    if let Some(client) = read.client {
        let encoded = encode(client, read.host.as_deref()).unwrap();
        assert_eq!(decode(&encoded).client, Some(client));
    }
});
