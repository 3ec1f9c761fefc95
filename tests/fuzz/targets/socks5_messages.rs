//! The messages of a SOCKS client: one that comes in pieces is read as one that comes whole, and
//! reading never wants more than a message can be long.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ztunnel::path::socks5::message::{Progress, greeting, request};

/// The longest message: a request with a name of 255 bytes.
const LONGEST: usize = 4 + 1 + 255 + 2;

fn read<T: PartialEq + std::fmt::Debug, E>(
    bytes: &[u8],
    one: impl Fn(&[u8]) -> Result<Progress<T>, E>,
) {
    let mut have = 0;
    loop {
        match one(&bytes[..have]) {
            Ok(Progress::Needs(length)) => {
                assert!(length > have && length <= LONGEST, "{length} after {have}");
                if length > bytes.len() {
                    return;
                }
                have = length;
            }
            // What comes behind a message is not looked at.
            Ok(Progress::Done(read)) => {
                assert!(matches!(one(bytes), Ok(Progress::Done(whole)) if whole == read));
                return;
            }
            Err(_refused) => return,
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    read(bytes, greeting);
    read(bytes, request);
});
