//! Code that several fuzz targets share: names and addresses from small sets, and a simple policy
//! evaluator.

use std::alloc::System;

use cap::Cap;
/// Defines a target. With this macro a target also gets the [limit of the heap](HEAP_LIMIT).
pub use libfuzzer_sys::fuzz_target;

pub mod naive;
pub mod world;

/// The limit of a target's heap, bytes. Decoders are bounded: a target whose inputs of a few kilobytes
/// need more aborts, with or without a sanitizer.
pub const HEAP_LIMIT: usize = 256 << 20;

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, HEAP_LIMIT);

/// Runs a future that needs neither a clock nor I/O.
///
/// # Panics
/// If tokio cannot build a runtime.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

/// A PEM block.
#[must_use]
pub fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in der.chunks(3) {
        let bits = group
            .iter()
            .fold(0, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - group.len()));
        for digit_index in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * digit_index)) as usize & 63];
            text.push(if digit_index > group.len() {
                '='
            } else {
                char::from(digit)
            });
        }
        if text.len() % 65 == 64 {
            text.push('\n');
        }
    }
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}
