//! A series of packets of the node agent, with and without a descriptor. The announced pods equal
//! those of a simple model.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::OwnedFd;

use arbitrary::Arbitrary;
use node::agent::zds::{AnnouncedPods, Message};
use ztunnel_fuzz::fuzz_target;

/// The descriptor of a packet.
#[derive(Debug, Arbitrary)]
enum Descriptor {
    None,
    /// A descriptor that is not a network namespace.
    Other,
    Namespace,
}

fuzz_target!(|packets: Vec<(Descriptor, Vec<u8>)>| {
    let mut announced = AnnouncedPods::default();
    let mut pods = BTreeMap::new();
    let mut named = BTreeSet::new();
    announced.begin_snapshot();
    for (kind, bytes) in packets {
        let descriptor: Option<OwnedFd> = match kind {
            Descriptor::None => None,
            Descriptor::Other => File::open("/dev/null").ok().map(Into::into),
            Descriptor::Namespace => File::open("/proc/self/ns/net").ok().map(Into::into),
        };
        let has_descriptor = descriptor.is_some();
        match Message::decode(&bytes, descriptor) {
            Ok(Message::Add(uid, added)) => {
                let Ok((info, _namespace)) = *added else {
                    continue;
                };
                assert!(matches!(kind, Descriptor::Namespace));
                for name in [&info.name, &info.namespace, &info.service_account] {
                    assert!((1..=253).contains(&name.len()), "{info:?}");
                    assert!(
                        name.bytes().all(|b| b.is_ascii_graphic() && b != b'/'),
                        "{info:?}"
                    );
                }
                named.insert(uid.clone());
                pods.insert(uid.clone(), info.clone());
                announced.add(uid, info).unwrap();
            }
            Err(_) => {}
            Ok(_) if has_descriptor => panic!("only AddWorkload may carry a descriptor"),
            Ok(Message::Keep(uid)) => {
                announced.keep(&uid).unwrap();
                named.insert(uid);
            }
            Ok(Message::Delete(uid)) => {
                assert_eq!(announced.delete(&uid), pods.remove(&uid));
                named.remove(&uid);
            }
            Ok(Message::SnapshotSent) => {
                announced.complete();
                pods.retain(|uid, _| named.contains(uid));
            }
        }
        assert!(announced.pods().eq(pods.iter()));
        assert!(
            announced
                .unknown()
                .eq(named.iter().filter(|uid| !pods.contains_key(uid)))
        );
    }
});
