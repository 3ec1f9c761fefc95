//! The messages of a SOCKS client. A message that arrives in pieces is decoded as one that arrives
//! whole, and the decoder never asks for more than the longest message.
#![no_main]

use node::proxy::socks5::message::{Progress, greeting, request};
use ztunnel_fuzz::fuzz_target;

/// The longest message: a request for a name of 255 bytes.
const LONGEST: usize = 4 + 1 + 255 + 2;

fn decode<T: PartialEq + std::fmt::Debug, E>(
    bytes: &[u8],
    decoder: impl Fn(&[u8]) -> Result<Progress<T>, E>,
) {
    let mut received = 0;
    loop {
        match decoder(&bytes[..received]) {
            Ok(Progress::Needs(length)) => {
                assert!(
                    length > received && length <= LONGEST,
                    "{length} after {received}"
                );
                if length > bytes.len() {
                    return;
                }
                received = length;
            }
            // The decoder ignores bytes that follow the message.
            Ok(Progress::Done(message)) => {
                assert!(matches!(decoder(bytes), Ok(Progress::Done(whole)) if whole == message));
                return;
            }
            Err(_refused) => return,
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    decode(bytes, greeting);
    decode(bytes, request);
});
