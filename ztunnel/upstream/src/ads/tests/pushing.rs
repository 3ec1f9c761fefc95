//! What the control plane sends, and how it is answered.

use std::time::Duration;

use super::plane::{pod, policy, resource, service, uid};
use super::*;
use api::envoy::service::discovery::v3::Resource;

#[tokio::test]
async fn the_first_requests_subscribe_to_everything() {
    let mut world = World::new().await;
    let mut session = world.session().await;
    let policies = session.request().await;
    assert_eq!(policies.type_url, AUTHORIZATION_TYPE);
    let node = policies.node.clone().expect("the node is named first");
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
async fn a_push_is_told_and_acknowledged() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let resources = vec![pod("a", "1", [10, 0, 0, 1]), service("b.example", "1")];
    session.addresses("n1", resources).await;
    session.acked(ADDRESS_TYPE, "n1").await;
    assert_eq!(
        told(&world.changes().await),
        [format!("+{}", uid("a")), "+default/b.example".to_owned()]
    );
    session.policies("n2", vec![policy("p", 0)]).await;
    session.acked(AUTHORIZATION_TYPE, "n2").await;
    assert_eq!(told(&world.changes().await), ["+default/p"]);
}

#[tokio::test]
async fn synced_is_told_once_when_both_types_have_come() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    session
        .addresses("n1", vec![pod("a", "1", [10, 0, 0, 1])])
        .await;
    session.acked(ADDRESS_TYPE, "n1").await;
    world.changes().await;
    world.nothing_told();
    // A mesh without policies: an empty answer.
    session.policies("n2", vec![]).await;
    session.acked(AUTHORIZATION_TYPE, "n2").await;
    world.synced().await;
    session.policies("n3", vec![policy("p", 0)]).await;
    assert_eq!(told(&world.changes().await), ["+default/p"]);
    session.acked(AUTHORIZATION_TYPE, "n3").await;
    session.addresses("n4", vec![]).await;
    session.acked(ADDRESS_TYPE, "n4").await;
    world.nothing_told();
}

#[tokio::test]
async fn what_is_bad_is_refused_by_name_and_the_rest_counts() {
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
    let complaint = session.nacked(ADDRESS_TYPE, "n1").await;
    for part in [
        "garbage: no istio.workload.Address: ",
        "c//v1/Pod/default/e: the resource holds \"c//v1/Pod/default/d\", which could not be removed by the name of the resource",
        "nothing: the resource has no content",
        "other: the resource holds a message of type \"type.googleapis.com/istio.security.Authorization\"",
    ] {
        assert!(complaint.contains(part), "{complaint}");
    }
    assert!(!complaint.contains(&uid("a")), "{complaint}");
    assert_eq!(
        told(&world.changes().await),
        [
            format!("+{}", uid("a")),
            // Its address can be read: it is in the mesh, and nobody knows as what.
            format!("?{} at /10.0.0.4", uid("e")),
            format!("+{}", uid("b"))
        ]
    );
}

#[tokio::test]
async fn a_policy_that_cannot_be_enforced_leaves_the_last_good_one_in_force() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    session.policies("n1", vec![policy("p", 1)]).await;
    session.acked(AUTHORIZATION_TYPE, "n1").await;
    assert_eq!(told(&world.changes().await), ["+default/p"]);
    session.policies("n2", vec![policy("p", 77)]).await;
    assert_eq!(
        session.nacked(AUTHORIZATION_TYPE, "n2").await,
        "default/p: policy default/p: action: 77 is not known here"
    );
    world.nothing_told();
}

#[tokio::test]
async fn a_flood_of_bad_resources_is_summed_up() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let bad = |at: usize| resource(&format!("x{at}"), "", ADDRESS_TYPE, vec![0xff]);
    session.addresses("n1", (0..100).map(bad).collect()).await;
    let complaint = session.nacked(ADDRESS_TYPE, "n1").await;
    assert!(complaint.contains("x31: "), "{complaint}");
    assert!(complaint.ends_with("; and 68 more"), "{complaint}");
}

#[tokio::test]
async fn what_is_gone_is_told_as_what_it_was() {
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
    let gone = [&*uid("a"), "default/b.example", "default/unheard-of"];
    session.push(ADDRESS_TYPE, "n3", vec![], &gone).await;
    session.acked(ADDRESS_TYPE, "n3").await;
    assert_eq!(
        told(&world.changes().await),
        [format!("-{}", uid("a")), "-default/b.example".to_owned()]
    );
    session
        .push(AUTHORIZATION_TYPE, "n4", vec![], &["default/p"])
        .await;
    session.acked(AUTHORIZATION_TYPE, "n4").await;
    assert_eq!(told(&world.changes().await), ["-default/p"]);
}

#[tokio::test]
async fn what_goes_comes_before_what_takes_its_place() {
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
        told(&world.changes().await),
        [format!("-{}", uid("a")), format!("+{}", uid("b"))]
    );
}

#[tokio::test]
async fn what_has_not_changed_is_not_told_again() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    for (nonce, version) in [("n1", "1"), ("n2", "1"), ("n3", "2")] {
        session
            .addresses(nonce, vec![pod("a", version, [10, 0, 0, 1])])
            .await;
        session.acked(ADDRESS_TYPE, nonce).await;
    }
    assert_eq!(told(&world.changes().await), [format!("+{}", uid("a"))]);
    world.nothing_told();
    // The same version with another content is another resource: what counts is what it says.
    session
        .addresses("n4", vec![pod("a", "2", [10, 0, 0, 2])])
        .await;
    assert_eq!(told(&world.changes().await), [format!("+{}", uid("a"))]);
}

#[tokio::test]
async fn every_response_is_answered_even_with_a_nonce_that_was_seen() {
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
    // The stream's order is the order of events; versions are the control plane's own affair.
    for expected in ["a", "a", "b"] {
        assert_eq!(
            told(&world.changes().await),
            [format!("+{}", uid(expected))]
        );
    }
}

#[tokio::test]
async fn a_type_that_was_not_asked_for_is_left_alone() {
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
    assert_eq!(told(&world.changes().await), [format!("+{}", uid("b"))]);
}

#[tokio::test]
async fn a_whole_mesh_comes_in_slices_that_end_once() {
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
        seen.extend(told(&batch.changes));
    }
    session.acked(ADDRESS_TYPE, "n1").await;
    assert_eq!(seen.len(), 1100);
    // Where the last slice is full, the end is told by an empty batch.
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
async fn nothing_more_is_read_than_the_node_takes() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    // The channel holds eight; the ninth push waits in the client, unanswered.
    for at in 0..9_u8 {
        let name = format!("p{at}");
        session
            .addresses(&name, vec![pod(&name, "1", [10, 0, 0, at])])
            .await;
    }
    for at in 0..8_u8 {
        session.acked(ADDRESS_TYPE, &format!("p{at}")).await;
    }
    let ninth = tokio::time::timeout(Duration::from_millis(200), session.request()).await;
    assert!(ninth.is_err(), "{ninth:?}");
    world.changes().await;
    session.acked(ADDRESS_TYPE, "p8").await;
}
