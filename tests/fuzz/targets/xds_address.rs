//! Any bytes as an `istio.workload.Address`. What is accepted says the same after it was encoded
//! anew, is found in a mesh by everything that it claims, and leaves nothing behind when it goes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use ztunnel::mesh::{Change, Interner, Snapshot};
use ztunnel::xds::decode::decode_address;
use ztunnel::xds::proto::istio::workload::Address;

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

    let mut mesh = Snapshot::default();
    assert!(mesh.apply(change.clone()));
    assert!(
        !mesh.apply(change.clone()),
        "told once more, it changes nothing"
    );
    let removal = match change {
        Change::Workload(workload) => {
            assert_eq!(
                mesh.workload_by_uid(&workload.uid).map(|found| &**found),
                Some(&*workload)
            );
            for address in &workload.workload_ips {
                let found = mesh.workload_by_address(&workload.network, *address);
                assert_eq!(found.map(|found| &found.uid), Some(&workload.uid));
            }
            assert_eq!(workload.identity.trust_domain().is_empty(), false);
            Change::RemoveWorkload(workload.uid.clone())
        }
        Change::Service(service) => {
            assert_eq!(
                mesh.service(&service.key()).map(|found| &**found),
                Some(&*service)
            );
            for vip in &service.vips {
                let found = mesh.service_by_vip(&vip.network, vip.address);
                assert_eq!(found.map(|found| found.key()), Some(service.key()));
            }
            Change::RemoveService(service.key())
        }
        other => panic!("an address is {other:?}"),
    };
    assert!(mesh.apply(removal.clone()));
    assert!(!mesh.apply(removal));
    assert_eq!((mesh.workloads().len(), mesh.services().len()), (0, 0));
});
