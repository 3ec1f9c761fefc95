//! Packets of the node agent, in a row, with and without a descriptor. Who is there afterwards is
//! what a naive record says.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::OwnedFd;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ztunnel::fuzzing::zds::{Said, read};
use ztunnel::pods::zds::Roster;

#[derive(Debug, Arbitrary)]
enum Rides {
    Nothing,
    /// No namespace.
    Other,
    /// A network namespace.
    Namespace,
}

fuzz_target!(|packets: Vec<(Rides, Vec<u8>)>| {
    let mut roster = Roster::default();
    let mut there = BTreeMap::new();
    let mut named = BTreeSet::new();
    roster.begin();
    for (rides, bytes) in packets {
        let descriptor: Option<OwnedFd> = match rides {
            Rides::Nothing => None,
            Rides::Other => File::open("/dev/null").ok().map(Into::into),
            Rides::Namespace => File::open("/proc/self/ns/net").ok().map(Into::into),
        };
        let with = descriptor.is_some();
        match read(bytes, descriptor) {
            Ok(Said::Add(uid, Ok(info))) => {
                assert!(matches!(rides, Rides::Namespace));
                for name in [&info.name, &info.namespace, &info.service_account] {
                    assert!((1..=253).contains(&name.len()), "{info:?}");
                    assert!(
                        name.bytes().all(|b| b.is_ascii_graphic() && b != b'/'),
                        "{info:?}"
                    );
                }
                named.insert(uid.clone());
                there.insert(uid.clone(), info.clone());
                roster.add(uid, info).unwrap();
            }
            Ok(Said::Add(..)) | Err(_) => {}
            Ok(_) if with => panic!("a descriptor rode on what has none"),
            Ok(Said::Keep(uid)) => {
                roster.keep(&uid).unwrap();
                named.insert(uid);
            }
            Ok(Said::Delete(uid)) => {
                assert_eq!(roster.delete(&uid), there.remove(&uid));
                named.remove(&uid);
            }
            Ok(Said::SnapshotSent) => {
                roster.complete();
                there.retain(|uid, _| named.contains(uid));
            }
        }
        assert!(roster.pods().eq(there.iter()));
        assert!(
            roster
                .unknown()
                .eq(named.iter().filter(|uid| !there.contains_key(uid)))
        );
    }
});
