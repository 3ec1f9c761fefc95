//! `baggage` headers of a peer, one per line. Every decoded value is bounded and printable, and is
//! the same after encoding and decoding.
#![no_main]

use http::HeaderValue;
use tunnel::hbone::Baggage;
use ztunnel_fuzz::fuzz_target;

fuzz_target!(|lines: &[u8]| {
    let headers: Vec<_> = lines
        .split(|byte| *byte == b'\n')
        .filter_map(|bytes| HeaderValue::from_bytes(bytes).ok())
        .collect();
    let read = Baggage::decode(&headers);
    let workload = read.workload.as_ref().map(|(_, name)| name);
    let values = [
        read.cluster.as_ref(),
        read.namespace.as_ref(),
        workload,
        read.service.as_ref(),
        read.version.as_ref(),
        read.region.as_ref(),
        read.zone.as_ref(),
    ];
    for value in values.into_iter().flatten() {
        assert!(value.len() <= 253 && !value.chars().any(char::is_control));
    }
    let encoded = read.encode();
    assert_eq!(encoded.is_none(), read == Baggage::default());
    assert_eq!(Baggage::decode(&encoded), read);
});
