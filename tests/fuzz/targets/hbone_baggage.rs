//! `baggage` headers of a peer, one a line. Whatever they say is bounded and printable, and what we would
//! write of it reads the same.
#![no_main]

use http::HeaderValue;
use libfuzzer_sys::fuzz_target;
use ztunnel::hbone::Baggage;

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
    let written = read.encode();
    assert_eq!(written.is_none(), read == Baggage::default());
    assert_eq!(Baggage::decode(&written), read);
});
