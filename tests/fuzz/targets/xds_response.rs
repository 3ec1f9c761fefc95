//! Any bytes as a `DeltaDiscoveryResponse`, applied to a mesh, twice: the second time nothing is
//! new, and what was refused is refused again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use ztunnel::xds::Intake;
use ztunnel::xds::proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use ztunnel::xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let Ok(mut response) = DeltaDiscoveryResponse::decode(rest) else {
        return;
    };
    match first % 3 {
        0 => response.type_url = ADDRESS_TYPE.to_owned(),
        1 => response.type_url = AUTHORIZATION_TYPE.to_owned(),
        _ => {}
    }
    ztunnel_fuzz::block_on(async {
        let mut taken = Intake::new("td");
        let Some(refused) = taken.take(response.clone()).await else {
            return;
        };
        assert!(refused <= response.resources.len());
        let before = sizes(&taken);
        assert_eq!(taken.take(response).await, Some(refused));
        assert_eq!(sizes(&taken), before);
    });
});

fn sizes(taken: &Intake) -> [usize; 3] {
    let mesh = &taken.mesh;
    [
        mesh.workloads().len(),
        mesh.services().len(),
        mesh.policies().len(),
    ]
}
