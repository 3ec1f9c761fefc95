//! Arbitrary bytes as a `DeltaDiscoveryResponse`, applied to a mesh twice. The second time changes
//! nothing and refuses the same number of resources.
#![no_main]

use api::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use prost::Message as _;
use upstream::ads::{ADDRESS_TYPE, AUTHORIZATION_TYPE, OfflineClient};
use ztunnel_fuzz::fuzz_target;

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
        let mut client = OfflineClient::new("td");
        let Some(refused) = client.apply(response.clone()).await else {
            return;
        };
        assert!(refused <= response.resources.len());
        let before = sizes(&client);
        assert_eq!(client.apply(response).await, Some(refused));
        assert_eq!(sizes(&client), before);
    });
});

fn sizes(client: &OfflineClient) -> [usize; 3] {
    let mesh = &client.mesh;
    [
        mesh.workloads().len(),
        mesh.services().len(),
        mesh.policies().len(),
    ]
}
