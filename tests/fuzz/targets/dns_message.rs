//! A DNS message, of an application or of a resolver. What is promised of the reply is asserted
//! where it is made (`ztunnel/src/dns/fuzz.rs`).
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &[u8]| {
    if let Some(reply) = ztunnel::dns::fuzz_parse(message) {
        // An answer to who has asked.
        assert_eq!(reply.get(..2), message.get(..2));
    }
});
