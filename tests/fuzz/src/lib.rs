//! Code that several fuzz targets share: names and addresses from small sets, and a simple policy
//! evaluator.

pub mod naive;
pub mod world;

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
