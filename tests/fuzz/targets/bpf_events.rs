//! Records of the ring buffer of fast-path events. Only a record of the right length and a known
//! kind is an event, with the fields of the record.
#![no_main]

use node::bpf::Event;
use ztunnel_fuzz::fuzz_target;

fuzz_target!(|record: &[u8]| {
    let Some(event) = Event::parse(record) else {
        return;
    };
    assert_eq!(record.len(), Event::LENGTH);
    let number = |from_end: usize| {
        let at = Event::LENGTH - from_end;
        u64::from_ne_bytes(record[at..at + 8].try_into().unwrap())
    };
    // The last fields of a record: time, request bytes, response bytes, kind and padding.
    assert_eq!(
        (event.request_bytes, event.response_bytes),
        (number(24), number(16))
    );
    assert!(u128::from(number(32)) >= event.elapsed.as_nanos());
});
