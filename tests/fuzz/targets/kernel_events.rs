//! Records of the ring of events: only one of the right size and kind is an event, and its
//! numbers are those that stand in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ztunnel::fuzzing::kernel::{LENGTH, event};

fuzz_target!(|record: &[u8]| {
    let Some(event) = event(record) else {
        return;
    };
    assert_eq!(record.len(), LENGTH);
    let number = |from_end: usize| {
        let at = LENGTH - from_end;
        u64::from_ne_bytes(record[at..at + 8].try_into().unwrap())
    };
    // The last fields of the record: at, request, response, kind and padding.
    assert_eq!((event.request, event.response), (number(24), number(16)));
    assert!(u128::from(number(32)) >= event.after.as_nanos());
});
