//! On-demand discovery: single resources are fetched.

use std::time::Duration;

use super::control_plane::{pod, resource, service, uid};
use super::*;
use api::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use mesh::{FetchOutcome, NamespacedHostname, NetworkAddress, ResourceKey};

async fn on_demand() -> World {
    World::with(|config| config.subscription = Subscription::OnDemand).await
}

fn address(text: &str) -> ResourceKey {
    ResourceKey::Address(NetworkAddress {
        network: "net".into(),
        address: text.parse().unwrap(),
    })
}

fn by_name(hostname: &str) -> ResourceKey {
    ResourceKey::Service(NamespacedHostname {
        namespace: "default".into(),
        hostname: hostname.into(),
    })
}

fn fetch(world: &World, key: ResourceKey) -> JoinHandle<FetchOutcome> {
    let fetcher = world.fetcher.clone().unwrap();
    tokio::spawn(async move { fetcher.fetch(&key).await })
}

fn subscription(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.to_owned(),
        resource_names_subscribe: owned(subscribe),
        resource_names_unsubscribe: owned(unsubscribe),
        ..DeltaDiscoveryRequest::default()
    }
}

#[tokio::test]
async fn the_first_requests_subscribe_to_all_policies_and_no_address() {
    let mut world = on_demand().await;
    let mut session = world.session().await;
    let policies = session.request().await;
    assert_eq!(policies.type_url, AUTHORIZATION_TYPE);
    assert!(policies.resource_names_subscribe.is_empty());
    assert_eq!(session.request().await, subscription(&["*"], &["*"]));
    // No response for addresses is awaited: none is subscribed.
    session.policies("n1", vec![]).await;
    world.synced().await;
}

#[tokio::test]
async fn a_fetch_returns_when_the_batch_is_dropped() {
    let mut world = on_demand().await;
    let mut session = world.subscribed().await;
    let fetching = fetch(&world, address("10.0.0.1"));
    assert_eq!(
        session.request().await,
        subscription(&["net/10.0.0.1"], &[])
    );
    let mut found = pod("a", "1", [10, 0, 0, 1]);
    found.aliases = vec!["net/10.0.0.1".to_owned()];
    session.addresses("n1", vec![found]).await;
    session.acked(ADDRESS_TYPE, "n1").await;
    let batch = world.batch().await;
    assert_eq!(summary(&batch.changes), [format!("+{}", uid("a"))]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!fetching.is_finished(), "the changes are not published yet");
    drop(batch);
    assert_eq!(soon(fetching).await.unwrap(), FetchOutcome::Found);
    // A held resource is not requested again: the control plane would not answer.
    let again = fetch(&world, address("10.0.0.1"));
    drop(world.batch().await);
    assert_eq!(soon(again).await.unwrap(), FetchOutcome::Found);
}

#[tokio::test]
async fn an_address_is_found_without_an_alias() {
    let mut world = on_demand().await;
    let mut session = world.subscribed().await;
    let fetching = {
        let key = ResourceKey::Address(NetworkAddress {
            network: "".into(),
            address: "::ffff:10.0.0.1".parse().unwrap(),
        });
        fetch(&world, key)
    };
    assert_eq!(session.request().await, subscription(&["/10.0.0.1"], &[]));
    session
        .addresses("n1", vec![pod("a", "1", [10, 0, 0, 1])])
        .await;
    drop(world.batch().await);
    assert_eq!(soon(fetching).await.unwrap(), FetchOutcome::Found);
}

#[tokio::test]
async fn an_absent_resource_can_be_fetched_again() {
    let mut world = on_demand().await;
    let mut session = world.subscribed().await;
    for nonce in ["n1", "n2"] {
        let fetching = fetch(&world, address("10.0.0.1"));
        assert_eq!(
            session.request().await,
            subscription(&["net/10.0.0.1"], &[])
        );
        session
            .push(ADDRESS_TYPE, nonce, vec![], &["net/10.0.0.1"])
            .await;
        session.acked(ADDRESS_TYPE, nonce).await;
        assert_eq!(
            session.request().await,
            subscription(&[], &["net/10.0.0.1"])
        );
        drop(world.batch().await);
        assert_eq!(soon(fetching).await.unwrap(), FetchOutcome::Absent);
    }
}

#[tokio::test]
async fn the_keys_of_a_removed_resource_are_unsubscribed() {
    let mut world = on_demand().await;
    let mut session = world.subscribed().await;
    let fetching = fetch(&world, address("10.0.0.1"));
    session.request().await;
    let mut found = pod("a", "1", [10, 0, 0, 1]);
    found.aliases = vec!["net/10.0.0.1".to_owned()];
    session.addresses("n1", vec![found]).await;
    session.acked(ADDRESS_TYPE, "n1").await;
    drop(world.batch().await);
    soon(fetching).await.unwrap();
    session.push(ADDRESS_TYPE, "n2", vec![], &[&uid("a")]).await;
    session.acked(ADDRESS_TYPE, "n2").await;
    assert_eq!(
        session.request().await,
        subscription(&[], &["net/10.0.0.1", &uid("a")])
    );
    drop(world.batch().await);
    let _again = fetch(&world, address("10.0.0.1"));
    assert_eq!(
        session.request().await,
        subscription(&["net/10.0.0.1"], &[])
    );
}

#[tokio::test]
async fn an_address_that_a_workload_no_longer_has_is_fetched_again() {
    let mut world = on_demand().await;
    let mut session = world.subscribed().await;
    let fetching = fetch(&world, address("10.0.0.1"));
    session.request().await;
    let with_alias = |version: &str, address: [u8; 4], alias: &str| {
        let mut found = pod("a", version, address);
        found.aliases = vec![alias.to_owned()];
        found
    };
    let first = with_alias("1", [10, 0, 0, 1], "net/10.0.0.1");
    session.addresses("n1", vec![first]).await;
    session.acked(ADDRESS_TYPE, "n1").await;
    drop(world.batch().await);
    soon(fetching).await.unwrap();
    let moved = with_alias("2", [10, 0, 0, 2], "net/10.0.0.2");
    session.addresses("n2", vec![moved]).await;
    session.acked(ADDRESS_TYPE, "n2").await;
    assert_eq!(
        session.request().await,
        subscription(&[], &["net/10.0.0.1"])
    );
    drop(world.batch().await);
    let _again = fetch(&world, address("10.0.0.1"));
    assert_eq!(
        session.request().await,
        subscription(&["net/10.0.0.1"], &[])
    );
}

#[tokio::test]
async fn concurrent_fetches_of_one_key_share_one_request() {
    let mut world = on_demand().await;
    let mut session = world.subscribed().await;
    let fetching: Vec<_> = (0..5)
        .map(|_| fetch(&world, by_name("b.example")))
        .collect();
    assert_eq!(
        session.request().await,
        subscription(&["default/b.example"], &[])
    );
    session
        .addresses("n1", vec![service("b.example", "1")])
        .await;
    session.acked(ADDRESS_TYPE, "n1").await;
    drop(world.batch().await);
    for fetching in fetching {
        assert_eq!(soon(fetching).await.unwrap(), FetchOutcome::Found);
    }
}

#[tokio::test]
async fn a_resource_that_cannot_be_decoded_is_not_reported_as_absent() {
    let mut world = on_demand().await;
    let mut session = world.subscribed().await;
    let fetching = fetch(&world, address("10.0.0.1"));
    session.request().await;
    let mut broken = resource(&uid("a"), "1", ADDRESS_TYPE, vec![0xff]);
    broken.aliases = vec!["net/10.0.0.1".to_owned()];
    session.addresses("n1", vec![broken]).await;
    session.nacked(ADDRESS_TYPE, "n1").await;
    drop(world.batch().await);
    assert_eq!(soon(fetching).await.unwrap(), FetchOutcome::Unknown);
}

#[tokio::test]
async fn a_fetch_without_an_answer_times_out() {
    let mut world = World::with(|config| {
        config.subscription = Subscription::OnDemand;
        config.demand_timeout = Duration::from_millis(50);
    })
    .await;
    let _session = world.subscribed().await;
    assert_eq!(
        soon(fetch(&world, by_name("b.example"))).await.unwrap(),
        FetchOutcome::Unknown
    );
    // Without a client, too.
    world.client.abort();
    assert_eq!(
        soon(fetch(&world, by_name("c.example"))).await.unwrap(),
        FetchOutcome::Unknown
    );
}

#[tokio::test]
async fn a_new_stream_subscribes_to_held_resources_and_pending_keys() {
    let mut world = on_demand().await;
    let mut session = world.subscribed().await;
    let held = fetch(&world, by_name("b.example"));
    session.request().await;
    session
        .addresses("n1", vec![service("b.example", "7")])
        .await;
    session.acked(ADDRESS_TYPE, "n1").await;
    drop(world.batch().await);
    soon(held).await.unwrap();
    let fetching = fetch(&world, address("10.0.0.1"));
    session.request().await;
    drop(session);
    let mut session = world.session().await;
    session.request().await;
    let mut expected = subscription(&["default/b.example", "net/10.0.0.1", "*"], &["*"]);
    let versions = &mut expected.initial_resource_versions;
    versions.insert("default/b.example".to_owned(), "7".to_owned());
    assert_eq!(session.request().await, expected);
    session
        .push(ADDRESS_TYPE, "n1", vec![], &["net/10.0.0.1"])
        .await;
    drop(world.batch().await);
    assert_eq!(soon(fetching).await.unwrap(), FetchOutcome::Absent);
}

#[tokio::test]
async fn a_full_subscription_has_no_handle_for_fetches() {
    assert!(World::new().await.fetcher.is_none());
}
