//! Pushes of the control plane: the events that they cause, and the answers of the client.

use std::time::Duration;

use super::control_plane::{pod, policy, resource, service, uid};
use super::*;
use api::envoy::service::discovery::v3::Resource;

#[tokio::test]
async fn the_first_requests_subscribe_to_everything() {
    let mut world = World::new().await;
    let mut session = world.session().await;
    let policies = session.request().await;
    assert_eq!(policies.type_url, AUTHORIZATION_TYPE);
    let node = policies
        .node
        .clone()
        .expect("the first request must describe the node");
    assert_eq!(
        node.id,
        "ztunnel~10.0.0.9~ztunnel-x.istio-system~istio-system.svc.cluster.local"
    );
    let addresses = session.request().await;
    assert_eq!(addresses.type_url, ADDRESS_TYPE);
    for request in [&policies, &addresses] {
        assert!(request.resource_names_subscribe.is_empty());
        assert!(request.resource_names_unsubscribe.is_empty());
        assert!(request.initial_resource_versions.is_empty());
        assert_eq!(request.response_nonce, "");
    }
}

#[tokio::test]
async fn a_push_is_reported_and_acknowledged() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let resources = vec![pod("a", "1", [10, 0, 0, 1]), service("b.example", "1")];
    session.addresses("n1", resources).await;
    session.acked(ADDRESS_TYPE, "n1").await;
    assert_eq!(
        summary(&world.changes().await),
        [format!("+{}", uid("a")), "+default/b.example".to_owned()]
    );
    session.policies("n2", vec![policy("p", 0)]).await;
    session.acked(AUTHORIZATION_TYPE, "n2").await;
    assert_eq!(summary(&world.changes().await), ["+default/p"]);
}

#[tokio::test]
async fn synced_is_sent_once_after_the_first_response_of_both_types() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    session
        .addresses("n1", vec![pod("a", "1", [10, 0, 0, 1])])
        .await;
    session.acked(ADDRESS_TYPE, "n1").await;
    world.changes().await;
    world.assert_no_event();
    // The response of a mesh without policies is empty.
    session.policies("n2", vec![]).await;
    session.acked(AUTHORIZATION_TYPE, "n2").await;
    world.synced().await;
    session.policies("n3", vec![policy("p", 0)]).await;
    assert_eq!(summary(&world.changes().await), ["+default/p"]);
    session.acked(AUTHORIZATION_TYPE, "n3").await;
    session.addresses("n4", vec![]).await;
    session.acked(ADDRESS_TYPE, "n4").await;
    world.assert_no_event();
}

#[tokio::test]
async fn invalid_resources_are_refused_by_name_and_the_others_are_applied() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let mut renamed = pod("d", "1", [10, 0, 0, 4]);
    renamed.name = uid("e");
    let empty = Resource {
        name: "nothing".to_owned(),
        ..Resource::default()
    };
    let resources = vec![
        pod("a", "1", [10, 0, 0, 1]),
        resource("garbage", "1", ADDRESS_TYPE, vec![0xff; 7]),
        renamed,
        empty,
        resource("other", "1", AUTHORIZATION_TYPE, vec![]),
        pod("b", "1", [10, 0, 0, 2]),
    ];
    session.addresses("n1", resources).await;
    let refusal = session.nacked(ADDRESS_TYPE, "n1").await;
    for part in [
        "garbage: the content is not a valid istio.workload.Address: ",
        "c//v1/Pod/default/e: the resource contains \"c//v1/Pod/default/d\"; expected the name of the resource",
        "nothing: the resource has no content",
        "other: the resource contains a message of type \"type.googleapis.com/istio.security.Authorization\"",
    ] {
        assert!(refusal.contains(part), "{refusal}");
    }
    assert!(!refusal.contains(&uid("a")), "{refusal}");
    assert_eq!(
        summary(&world.changes().await),
        [
            format!("+{}", uid("a")),
            // Its address can be decoded, so it gets a placeholder.
            format!("?{} at /10.0.0.4", uid("e")),
            format!("+{}", uid("b"))
        ]
    );
}

#[tokio::test]
async fn the_last_good_version_of_a_policy_stays_enforced() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    session.policies("n1", vec![policy("p", 1)]).await;
    session.acked(AUTHORIZATION_TYPE, "n1").await;
    assert_eq!(summary(&world.changes().await), ["+default/p"]);
    session.policies("n2", vec![policy("p", 77)]).await;
    assert_eq!(
        session.nacked(AUTHORIZATION_TYPE, "n2").await,
        "default/p: policy default/p: action: 77 is an unknown value"
    );
    world.assert_no_event();
}

#[tokio::test]
async fn many_refusals_are_summarized() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let bad = |at: usize| resource(&format!("x{at}"), "", ADDRESS_TYPE, vec![0xff]);
    session.addresses("n1", (0..100).map(bad).collect()).await;
    let refusal = session.nacked(ADDRESS_TYPE, "n1").await;
    assert!(refusal.contains("x31: "), "{refusal}");
    assert!(refusal.ends_with("; and 68 more"), "{refusal}");
}

#[tokio::test]
async fn a_removal_is_reported_with_the_kind_of_the_removed_resource() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let resources = vec![pod("a", "1", [10, 0, 0, 1]), service("b.example", "1")];
    session.addresses("n1", resources).await;
    session.acked(ADDRESS_TYPE, "n1").await;
    session.policies("n2", vec![policy("p", 0)]).await;
    session.acked(AUTHORIZATION_TYPE, "n2").await;
    world.changes().await;
    world.changes().await;
    world.synced().await;
    let gone = [&*uid("a"), "default/b.example", "default/unknown"];
    session.push(ADDRESS_TYPE, "n3", vec![], &gone).await;
    session.acked(ADDRESS_TYPE, "n3").await;
    assert_eq!(
        summary(&world.changes().await),
        [format!("-{}", uid("a")), "-default/b.example".to_owned()]
    );
    session
        .push(AUTHORIZATION_TYPE, "n4", vec![], &["default/p"])
        .await;
    session.acked(AUTHORIZATION_TYPE, "n4").await;
    assert_eq!(summary(&world.changes().await), ["-default/p"]);
}

#[tokio::test]
async fn removals_are_reported_before_additions() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    session
        .addresses("n1", vec![pod("a", "1", [10, 0, 0, 1])])
        .await;
    session.acked(ADDRESS_TYPE, "n1").await;
    world.changes().await;
    let successor = vec![pod("b", "1", [10, 0, 0, 1])];
    session
        .push(ADDRESS_TYPE, "n2", successor, &[&uid("a")])
        .await;
    assert_eq!(
        summary(&world.changes().await),
        [format!("-{}", uid("a")), format!("+{}", uid("b"))]
    );
}

#[tokio::test]
async fn an_unchanged_resource_is_not_reported_again() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    for (nonce, version) in [("n1", "1"), ("n2", "1"), ("n3", "2")] {
        session
            .addresses(nonce, vec![pod("a", version, [10, 0, 0, 1])])
            .await;
        session.acked(ADDRESS_TYPE, nonce).await;
    }
    assert_eq!(summary(&world.changes().await), [format!("+{}", uid("a"))]);
    world.assert_no_event();
    // The same version with different content is a change: the content is compared, not the version.
    session
        .addresses("n4", vec![pod("a", "2", [10, 0, 0, 2])])
        .await;
    assert_eq!(summary(&world.changes().await), [format!("+{}", uid("a"))]);
}

#[tokio::test]
async fn every_response_is_acknowledged_even_with_a_repeated_nonce() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    session
        .addresses("n2", vec![pod("a", "2", [10, 0, 0, 2])])
        .await;
    session
        .addresses("n1", vec![pod("a", "1", [10, 0, 0, 1])])
        .await;
    session
        .addresses("n1", vec![pod("b", "1", [10, 0, 0, 3])])
        .await;
    for nonce in ["n2", "n1", "n1"] {
        session.acked(ADDRESS_TYPE, nonce).await;
    }
    // The responses are applied in the order of the stream, whatever their versions are.
    for expected in ["a", "a", "b"] {
        assert_eq!(
            summary(&world.changes().await),
            [format!("+{}", uid(expected))]
        );
    }
}

#[tokio::test]
async fn a_response_of_a_type_without_subscription_is_ignored() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let url = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    session
        .push(url, "n1", vec![pod("a", "1", [10, 0, 0, 1])], &[])
        .await;
    session
        .addresses("n2", vec![pod("b", "1", [10, 0, 0, 2])])
        .await;
    session.acked(ADDRESS_TYPE, "n2").await;
    assert_eq!(summary(&world.changes().await), [format!("+{}", uid("b"))]);
}

#[tokio::test]
async fn a_large_push_is_sent_in_batches_of_which_only_the_last_ends_it() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let many = |at: u16| {
        let [high, low] = at.to_be_bytes();
        pod(&format!("p{at}"), "1", [10, 0, high, low])
    };
    session.addresses("n1", (0..1100).map(many).collect()).await;
    let mut seen = Vec::new();
    for (size, ends) in [(512, false), (512, false), (76, true)] {
        let batch = world.batch().await;
        assert_eq!((batch.changes.len(), batch.ends_push), (size, ends));
        seen.extend(summary(&batch.changes));
    }
    session.acked(ADDRESS_TYPE, "n1").await;
    assert_eq!(seen.len(), 1100);
    // If the last batch is full, an empty batch ends the push.
    session
        .push(ADDRESS_TYPE, "n2", vec![], &[&uid("p0")])
        .await;
    assert!(world.batch().await.ends_push);
    session.acked(ADDRESS_TYPE, "n2").await;
    let again = |at: u16| {
        let [high, low] = at.to_be_bytes();
        pod(&format!("p{at}"), "1", [10, 1, high, low])
    };
    session.addresses("n3", (0..512).map(again).collect()).await;
    let batch = world.batch().await;
    assert_eq!((batch.changes.len(), batch.ends_push), (512, false));
    let batch = world.batch().await;
    assert_eq!((batch.changes.len(), batch.ends_push), (0, true));
}

#[tokio::test]
async fn the_client_stops_reading_while_the_event_queue_is_full() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    // The queue has eight places; the ninth push waits in the client without an acknowledgement.
    for at in 0..9_u8 {
        let name = format!("p{at}");
        session
            .addresses(&name, vec![pod(&name, "1", [10, 0, 0, at])])
            .await;
    }
    for at in 0..8_u8 {
        session.acked(ADDRESS_TYPE, &format!("p{at}")).await;
    }
    let ninth_ack = tokio::time::timeout(Duration::from_millis(200), session.request()).await;
    assert!(ninth_ack.is_err(), "{ninth_ack:?}");
    world.changes().await;
    session.acked(ADDRESS_TYPE, "p8").await;
}
