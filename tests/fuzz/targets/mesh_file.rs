//! The local file. What is accepted makes a mesh in which everything of it is found.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ztunnel::mesh::local;

fuzz_target!(|text: &str| {
    let Ok(mesh) = local::parse(text) else {
        return;
    };
    let snapshot = mesh.clone().into_snapshot();
    assert_eq!(snapshot.workloads().len(), mesh.workloads.len());
    assert_eq!(snapshot.services().len(), mesh.services.len());
    assert_eq!(snapshot.policies().len(), mesh.policies.len());
    for workload in &mesh.workloads {
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
    for service in &mesh.services {
        assert_eq!(
            snapshot.service(&service.key()).map(|found| &**found),
            Some(service)
        );
    }
    for policy in &mesh.policies {
        assert_eq!(
            snapshot.policy(&policy.key()).map(|found| &**found),
            Some(policy)
        );
    }
});
