//! A `traceparent` header. The decoded value is encoded as version 00 and decodes to the same
//! value.
#![no_main]

use http::HeaderValue;
use tunnel::hbone::TraceParent;
use ztunnel_fuzz::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = HeaderValue::from_bytes(bytes) else {
        return;
    };
    if let Some(trace) = TraceParent::decode(&value) {
        assert!(trace.trace_id != 0 && trace.parent_id != 0);
        let encoded = trace.encode().unwrap();
        assert_eq!(encoded.len(), 55);
        assert_eq!(TraceParent::decode(&encoded), Some(trace));
    }
});
