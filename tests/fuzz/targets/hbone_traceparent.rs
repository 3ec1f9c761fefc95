//! A `traceparent` header. What is read is written as version 00 and reads the same.
#![no_main]

use http::HeaderValue;
use libfuzzer_sys::fuzz_target;
use ztunnel::fuzzing::hbone::{traceparent, traceparent_of};

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = HeaderValue::from_bytes(bytes) else {
        return;
    };
    if let Some(trace) = traceparent(&value) {
        assert!(trace.trace_id != 0 && trace.parent_id != 0);
        let written = traceparent_of(trace).unwrap();
        assert_eq!(written.len(), 55);
        assert_eq!(traceparent(&written), Some(trace));
    }
});
