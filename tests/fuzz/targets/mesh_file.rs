//! The local mesh file. Everything in an accepted file is in its snapshot.
#![no_main]

use mesh::local;
use ztunnel_fuzz::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(described) = local::parse(text) else {
        return;
    };
    let snapshot = described.clone().into_snapshot();
    assert_eq!(snapshot.workloads().len(), described.workloads.len());
    assert_eq!(snapshot.services().len(), described.services.len());
    assert_eq!(snapshot.policies().len(), described.policies.len());
    for workload in &described.workloads {
        assert_eq!(
            snapshot
                .workload_by_uid(&workload.uid)
                .map(|found| &**found),
            Some(workload)
        );
        for address in &workload.workload_ips {
            let found = snapshot.workload_by_address(&workload.network, *address);
            assert_eq!(found.map(|found| &found.uid), Some(&workload.uid));
        }
    }
    for service in &described.services {
        assert_eq!(
            snapshot.service(&service.key()).map(|found| &**found),
            Some(service)
        );
    }
    for policy in &described.policies {
        assert_eq!(
            snapshot.policy(&policy.key()).map(|found| &**found),
            Some(policy)
        );
    }
});
