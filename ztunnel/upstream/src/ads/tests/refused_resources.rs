//! Placeholders of refused resources.

use prost::Message as _;

use super::control_plane::{pod, policy, resource, service, uid};
use super::*;
use api::envoy::service::discovery::v3::Resource;
use api::istio::security::{Authorization, Scope};
use api::istio::workload;
use mesh::{Action, Policy, PolicyScope};

/// A workload that is refused, because its second address has 3 bytes.
fn invalid_pod(name: &str, version: &str, address: [u8; 4]) -> Resource {
    let uid = uid(name);
    let workload = workload::Workload {
        uid: uid.clone(),
        name: name.to_owned(),
        addresses: vec![address.to_vec().into(), vec![1, 2, 3].into()],
        ..workload::Workload::default()
    };
    let kind = workload::address::Type::Workload(workload);
    let message = workload::Address { r#type: Some(kind) };
    resource(&uid, version, ADDRESS_TYPE, message.encode_to_vec())
}

#[tokio::test]
async fn the_placeholder_of_a_refused_resource_has_its_addresses_until_the_resource_is_removed() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let mut garbage = resource("garbage", "1", ADDRESS_TYPE, vec![0xff; 7]);
    garbage.aliases = vec!["net/10.0.0.7".to_owned(), "nothing".to_owned()];
    session.addresses("n1", vec![garbage]).await;
    session.nacked(ADDRESS_TYPE, "n1").await;
    assert_eq!(
        summary(&world.changes().await),
        ["?garbage at net/10.0.0.7"]
    );
    session.push(ADDRESS_TYPE, "n2", vec![], &["garbage"]).await;
    session.acked(ADDRESS_TYPE, "n2").await;
    assert_eq!(summary(&world.changes().await), ["!garbage"]);
}

#[tokio::test]
async fn every_refused_resource_of_a_large_push_gets_a_placeholder() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let many = |at: u16| {
        let [high, low] = at.to_be_bytes();
        invalid_pod(&at.to_string(), "1", [10, 0, high, low])
    };
    session
        .addresses("n1", (0..10_000).map(many).collect())
        .await;
    assert_eq!(world.changes().await.len(), 10_000);
    session.nacked(ADDRESS_TYPE, "n1").await;
}

#[tokio::test]
async fn a_refused_update_adds_a_placeholder_for_its_new_addresses() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let good = pod("a", "1", [10, 0, 0, 1]);
    session.addresses("n1", vec![good.clone()]).await;
    session.acked(ADDRESS_TYPE, "n1").await;
    world.changes().await;
    session
        .addresses("n2", vec![invalid_pod("a", "2", [10, 0, 0, 2])])
        .await;
    session.nacked(ADDRESS_TYPE, "n2").await;
    let name = uid("a");
    assert_eq!(
        summary(&world.changes().await),
        [format!("?{name} at /10.0.0.2")]
    );
    // The control plane reverts the update: the held version is current again.
    session.addresses("n3", vec![good]).await;
    session.acked(ADDRESS_TYPE, "n3").await;
    assert_eq!(summary(&world.changes().await), [format!("!{name}")]);
    session
        .addresses("n4", vec![invalid_pod("a", "2", [10, 0, 0, 2])])
        .await;
    session.nacked(ADDRESS_TYPE, "n4").await;
    world.changes().await;
    session.push(ADDRESS_TYPE, "n5", vec![], &[&name]).await;
    session.acked(ADDRESS_TYPE, "n5").await;
    assert_eq!(
        summary(&world.changes().await),
        [format!("-{name}"), format!("!{name}")]
    );
}

#[tokio::test]
async fn a_placeholder_is_removed_if_a_new_stream_does_not_contain_its_resource() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let held = vec![pod("held", "1", [10, 0, 0, 1])];
    session.addresses("n1", held).await;
    session.acked(ADDRESS_TYPE, "n1").await;
    let bad = [("held", 2), ("gone", 3), ("stays", 4)]
        .map(|(name, at)| invalid_pod(name, "2", [10, 0, 0, at]))
        .to_vec();
    session.addresses("n2", bad).await;
    session.nacked(ADDRESS_TYPE, "n2").await;
    session.policies("n3", vec![policy("guard", 7)]).await;
    session.nacked(AUTHORIZATION_TYPE, "n3").await;
    for _ in 0..3 {
        world.changes().await;
    }
    world.synced().await;
    drop(session);

    let mut session = world.session().await;
    assert!(session.request().await.initial_resource_versions.is_empty());
    let versions = session.request().await.initial_resource_versions;
    assert_eq!(versions.len(), 1, "{versions:?}");
    session.policies("n1", vec![]).await;
    session.acked(AUTHORIZATION_TYPE, "n1").await;
    assert_eq!(summary(&world.changes().await), ["-default/guard"]);
    let again = vec![invalid_pod("stays", "2", [10, 0, 0, 4])];
    session.addresses("n2", again).await;
    session.nacked(ADDRESS_TYPE, "n2").await;
    let mut changes = summary(&world.changes().await);
    changes.sort();
    let name = |name| format!("!{}", uid(name));
    let stays = format!("?{} at /10.0.0.4", uid("stays"));
    assert_eq!(changes, [name("gone"), name("held"), stays]);
}

#[tokio::test]
async fn on_demand_a_new_stream_subscribes_to_refused_resources() {
    let mut world = World::with(|config| config.subscription = Subscription::OnDemand).await;
    let mut session = world.subscribed().await;
    let resources = vec![
        invalid_pod("a", "1", [10, 0, 0, 1]),
        service("b.example", "1"),
    ];
    session.addresses("n1", resources).await;
    session.nacked(ADDRESS_TYPE, "n1").await;
    world.changes().await;
    drop(session);
    let mut session = world.session().await;
    session.request().await;
    let mut names = session.request().await.resource_names_subscribe;
    names.sort();
    assert_eq!(
        names,
        ["*".to_owned(), uid("a"), "default/b.example".to_owned()]
    );
    session.push(ADDRESS_TYPE, "n1", vec![], &[&uid("a")]).await;
    assert_eq!(summary(&world.changes().await), [format!("!{}", uid("a"))]);
}

/// Sends a policy that is refused, and returns its placeholder.
async fn policy_placeholder(
    world: &mut World,
    session: &mut Session,
    refused: Authorization,
) -> Policy {
    let bytes = refused.encode_to_vec();
    let refused = resource("default/guard", "1", AUTHORIZATION_TYPE, bytes);
    session.policies("n1", vec![refused]).await;
    session.nacked(AUTHORIZATION_TYPE, "n1").await;
    let mut changes = world.changes().await;
    let Some(Change::Policy(policy)) = changes.pop() else {
        panic!("{changes:?}");
    };
    assert_eq!(policy.key(), "default/guard");
    *policy
}

#[tokio::test]
async fn the_placeholder_of_a_policy_keeps_its_scope_action_and_dry_run() {
    let every_connection: &[&[&[_]]] = &[&[&[]]];
    let cases = [
        // Scope, action and dry run of the policy; scope and action of the placeholder.
        (0, 7, false, PolicyScope::Global, Action::Deny),
        (1, 7, true, PolicyScope::Namespace, Action::Deny),
        (2, 1, false, PolicyScope::WorkloadSelector, Action::Deny),
        (9, 1, false, PolicyScope::WorkloadSelector, Action::Deny),
        (0, 0, false, PolicyScope::Global, Action::Allow),
    ];
    for (scope, action, dry_run, expected_scope, expected_action) in cases {
        let mut world = World::new().await;
        let mut session = world.subscribed().await;
        let refused = Authorization {
            // Differs from the name of the resource.
            name: "other".to_owned(),
            namespace: "default".to_owned(),
            scope,
            action,
            dry_run,
            ..Authorization::default()
        };
        let policy = policy_placeholder(&mut world, &mut session, refused).await;
        assert_eq!(policy.scope, expected_scope);
        assert_eq!(policy.action, expected_action);
        assert_eq!(policy.dry_run, dry_run);
        // The placeholder of an ALLOW policy matches no connection.
        let rules = if expected_action == Action::Deny {
            every_connection
        } else {
            &[]
        };
        assert_eq!(policy.rules, rules);
    }
}

#[tokio::test]
async fn a_valid_policy_replaces_its_placeholder() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let refused = Authorization {
        name: "guard".to_owned(),
        namespace: "default".to_owned(),
        scope: Scope::Global.into(),
        action: 7,
        ..Authorization::default()
    };
    policy_placeholder(&mut world, &mut session, refused).await;
    session.policies("n2", vec![policy("guard", 0)]).await;
    session.acked(AUTHORIZATION_TYPE, "n2").await;
    assert_eq!(summary(&world.changes().await), ["+default/guard"]);
    // A later invalid version changes nothing.
    session.policies("n3", vec![policy("guard", 7)]).await;
    session.nacked(AUTHORIZATION_TYPE, "n3").await;
    session
        .push(AUTHORIZATION_TYPE, "n4", vec![], &["default/guard"])
        .await;
    assert_eq!(summary(&world.changes().await), ["-default/guard"]);
}
