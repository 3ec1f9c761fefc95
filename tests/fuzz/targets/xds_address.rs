//! Arbitrary bytes as an `istio.workload.Address`. An accepted resource decodes to the same value
//! after encoding, is in a snapshot under each of its names and addresses, and leaves nothing in it
//! when it is removed.
#![no_main]

use api::istio::workload::Address;
use mesh::{Change, Interner, Snapshot};
use prost::Message as _;
use upstream::ads::decode::decode_address;
use ztunnel_fuzz::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut texts = Interner::new();
    let Ok(change) = decode_address(bytes, "td", &mut texts) else {
        return;
    };
    let again = Address::decode(bytes).unwrap().encode_to_vec();
    assert_eq!(
        decode_address(&again, "td", &mut texts).as_ref(),
        Ok(&change)
    );

    let mut snapshot = Snapshot::default();
    assert!(snapshot.apply(change.clone()));
    assert!(
        !snapshot.apply(change.clone()),
        "a repeated change must change nothing"
    );
    let removal = match change {
        Change::Workload(workload) => {
            assert_eq!(
                snapshot
                    .workload_by_uid(&workload.uid)
                    .map(|found| &**found),
                Some(&*workload)
            );
            for address in &workload.workload_ips {
                let found = snapshot.workload_by_address(&workload.network, *address);
                assert_eq!(found.map(|found| &found.uid), Some(&workload.uid));
            }
            assert!(!workload.identity.trust_domain().is_empty());
            Change::RemoveWorkload(workload.uid.clone())
        }
        Change::Service(service) => {
            assert_eq!(
                snapshot.service(&service.key()).map(|found| &**found),
                Some(&*service)
            );
            for vip in &service.vips {
                let found = snapshot.service_by_vip(&vip.network, vip.address);
                assert_eq!(found.map(|found| found.key()), Some(service.key()));
            }
            Change::RemoveService(service.key())
        }
        other => panic!("an address decoded to {other:?}"),
    };
    assert!(snapshot.apply(removal.clone()));
    assert!(!snapshot.apply(removal));
    assert_eq!(
        (snapshot.workloads().len(), snapshot.services().len()),
        (0, 0)
    );
});
