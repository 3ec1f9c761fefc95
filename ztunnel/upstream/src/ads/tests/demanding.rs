//! Single resources, asked for one by one.

use std::time::Duration;

use super::plane::{pod, resource, service, uid};
use super::*;
use api::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use mesh::{DemandKey, Fetched, NamespacedHostname, NetworkAddress};

async fn on_demand() -> World {
    World::with(|config| config.subscription = Subscription::OnDemand).await
}

fn address(text: &str) -> DemandKey {
    DemandKey::Address(NetworkAddress {
        network: "net".into(),
        address: text.parse().unwrap(),
    })
}

fn by_name(hostname: &str) -> DemandKey {
    DemandKey::Service(NamespacedHostname {
        namespace: "default".into(),
        hostname: hostname.into(),
    })
}

fn fetch(world: &World, key: DemandKey) -> JoinHandle<Fetched> {
    let demand = world.demand.clone().unwrap();
    tokio::spawn(async move { demand.fetch(&key).await })
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
async fn nothing_is_subscribed_at_first_and_all_policies() {
    let mut world = on_demand().await;
    let mut session = world.session().await;
    let policies = session.request().await;
    assert_eq!(policies.type_url, AUTHORIZATION_TYPE);
    assert!(policies.resource_names_subscribe.is_empty());
    assert_eq!(session.request().await, subscription(&["*"], &["*"]));
    // Addresses have no beginning that could be waited for.
    session.policies("n1", vec![]).await;
    world.synced().await;
}

#[tokio::test]
async fn who_asks_goes_on_when_the_answer_is_in_force() {
    let mut world = on_demand().await;
    let mut session = world.subscribed().await;
    let asking = fetch(&world, address("10.0.0.1"));
    assert_eq!(
        session.request().await,
        subscription(&["net/10.0.0.1"], &[])
    );
    let mut found = pod("a", "1", [10, 0, 0, 1]);
    found.aliases = vec!["net/10.0.0.1".to_owned()];
    session.addresses("n1", vec![found]).await;
    session.acked(ADDRESS_TYPE, "n1").await;
    let batch = world.batch().await;
    assert_eq!(told(&batch.changes), [format!("+{}", uid("a"))]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!asking.is_finished(), "the changes are not in force yet");
    drop(batch);
    assert_eq!(soon(asking).await.unwrap(), Fetched::Found);
    // What is held is not asked for again: the control plane would not answer.
    let again = fetch(&world, address("10.0.0.1"));
    drop(world.batch().await);
    assert_eq!(soon(again).await.unwrap(), Fetched::Found);
}

#[tokio::test]
async fn an_address_is_known_without_an_alias() {
    let mut world = on_demand().await;
    let mut session = world.subscribed().await;
    let asking = {
        let key = DemandKey::Address(NetworkAddress {
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
    assert_eq!(soon(asking).await.unwrap(), Fetched::Found);
}

#[tokio::test]
async fn what_is_not_there_can_be_asked_for_again() {
    let mut world = on_demand().await;
    let mut session = world.subscribed().await;
    for nonce in ["n1", "n2"] {
        let asking = fetch(&world, address("10.0.0.1"));
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
        assert_eq!(soon(asking).await.unwrap(), Fetched::Absent);
    }
}

#[tokio::test]
async fn a_resource_that_leaves_takes_its_keys_along() {
    let mut world = on_demand().await;
    let mut session = world.subscribed().await;
    let asking = fetch(&world, address("10.0.0.1"));
    session.request().await;
    let mut found = pod("a", "1", [10, 0, 0, 1]);
    found.aliases = vec!["net/10.0.0.1".to_owned()];
    session.addresses("n1", vec![found]).await;
    session.acked(ADDRESS_TYPE, "n1").await;
    drop(world.batch().await);
    soon(asking).await.unwrap();
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
async fn an_address_that_a_workload_gave_up_is_asked_for_again() {
    let mut world = on_demand().await;
    let mut session = world.subscribed().await;
    let asking = fetch(&world, address("10.0.0.1"));
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
    soon(asking).await.unwrap();
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
async fn many_who_ask_for_the_same_share_one_question() {
    let mut world = on_demand().await;
    let mut session = world.subscribed().await;
    let asking: Vec<_> = (0..5)
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
    for asking in asking {
        assert_eq!(soon(asking).await.unwrap(), Fetched::Found);
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_not_taken_for_outside_of_the_mesh() {
    let mut world = on_demand().await;
    let mut session = world.subscribed().await;
    let asking = fetch(&world, address("10.0.0.1"));
    session.request().await;
    let mut broken = resource(&uid("a"), "1", ADDRESS_TYPE, vec![0xff]);
    broken.aliases = vec!["net/10.0.0.1".to_owned()];
    session.addresses("n1", vec![broken]).await;
    session.nacked(ADDRESS_TYPE, "n1").await;
    drop(world.batch().await);
    assert_eq!(soon(asking).await.unwrap(), Fetched::Unknown);
}

#[tokio::test]
async fn without_an_answer_the_wait_ends() {
    let mut world = World::with(|config| {
        config.subscription = Subscription::OnDemand;
        config.demand_timeout = Duration::from_millis(50);
    })
    .await;
    let _session = world.subscribed().await;
    assert_eq!(
        soon(fetch(&world, by_name("b.example"))).await.unwrap(),
        Fetched::Unknown
    );
    // Nor without a client.
    world.client.abort();
    assert_eq!(
        soon(fetch(&world, by_name("c.example"))).await.unwrap(),
        Fetched::Unknown
    );
}

#[tokio::test]
async fn what_is_held_and_what_is_awaited_is_subscribed_on_a_new_stream() {
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
    let asking = fetch(&world, address("10.0.0.1"));
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
    assert_eq!(soon(asking).await.unwrap(), Fetched::Absent);
}

#[tokio::test]
async fn there_is_nothing_to_ask_where_everything_is_subscribed() {
    assert!(World::new().await.demand.is_none());
}
