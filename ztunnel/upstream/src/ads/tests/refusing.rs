//! What stands in the mesh for what was refused.

use prost::Message as _;

use super::plane::{pod, policy, resource, service, uid};
use super::*;
use api::envoy::service::discovery::v3::Resource;
use api::istio::security::{Authorization, Scope};
use api::istio::workload;
use mesh::{Action, Policy, PolicyScope};

/// A workload that is refused: the second of its addresses is none.
fn spoilt(name: &str, version: &str, address: [u8; 4]) -> Resource {
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
async fn what_is_refused_is_known_by_its_addresses_until_it_can_be_read_or_is_gone() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let mut garbage = resource("garbage", "1", ADDRESS_TYPE, vec![0xff; 7]);
    garbage.aliases = vec!["net/10.0.0.7".to_owned(), "nothing".to_owned()];
    session.addresses("n1", vec![garbage]).await;
    session.nacked(ADDRESS_TYPE, "n1").await;
    assert_eq!(told(&world.changes().await), ["?garbage at net/10.0.0.7"]);
    session.push(ADDRESS_TYPE, "n2", vec![], &["garbage"]).await;
    session.acked(ADDRESS_TYPE, "n2").await;
    assert_eq!(told(&world.changes().await), ["!garbage"]);
}

#[tokio::test]
async fn no_number_of_refused_resources_is_too_large() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let many = |at: u16| {
        let [high, low] = at.to_be_bytes();
        spoilt(&at.to_string(), "1", [10, 0, high, low])
    };
    session
        .addresses("n1", (0..10_000).map(many).collect())
        .await;
    assert_eq!(world.changes().await.len(), 10_000);
    session.nacked(ADDRESS_TYPE, "n1").await;
}

#[tokio::test]
async fn a_refused_update_is_known_by_its_new_addresses_as_well() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let good = pod("a", "1", [10, 0, 0, 1]);
    session.addresses("n1", vec![good.clone()]).await;
    session.acked(ADDRESS_TYPE, "n1").await;
    world.changes().await;
    session
        .addresses("n2", vec![spoilt("a", "2", [10, 0, 0, 2])])
        .await;
    session.nacked(ADDRESS_TYPE, "n2").await;
    let name = uid("a");
    assert_eq!(
        told(&world.changes().await),
        [format!("?{name} at /10.0.0.2")]
    );
    // The control plane takes it back: what is held is right again.
    session.addresses("n3", vec![good]).await;
    session.acked(ADDRESS_TYPE, "n3").await;
    assert_eq!(told(&world.changes().await), [format!("!{name}")]);
    session
        .addresses("n4", vec![spoilt("a", "2", [10, 0, 0, 2])])
        .await;
    session.nacked(ADDRESS_TYPE, "n4").await;
    world.changes().await;
    session.push(ADDRESS_TYPE, "n5", vec![], &[&name]).await;
    session.acked(ADDRESS_TYPE, "n5").await;
    assert_eq!(
        told(&world.changes().await),
        [format!("-{name}"), format!("!{name}")]
    );
}

#[tokio::test]
async fn what_stood_in_is_gone_where_a_new_stream_does_not_bring_it_again() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let held = vec![pod("held", "1", [10, 0, 0, 1])];
    session.addresses("n1", held).await;
    session.acked(ADDRESS_TYPE, "n1").await;
    let bad = [("held", 2), ("gone", 3), ("stays", 4)]
        .map(|(name, at)| spoilt(name, "2", [10, 0, 0, at]))
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
    assert_eq!(told(&world.changes().await), ["-default/guard"]);
    let again = vec![spoilt("stays", "2", [10, 0, 0, 4])];
    session.addresses("n2", again).await;
    session.nacked(ADDRESS_TYPE, "n2").await;
    let mut changes = told(&world.changes().await);
    changes.sort();
    let name = |name| format!("!{}", uid(name));
    let stays = format!("?{} at /10.0.0.4", uid("stays"));
    assert_eq!(changes, [name("gone"), name("held"), stays]);
}

#[tokio::test]
async fn on_demand_what_stood_in_is_asked_for_on_a_new_stream() {
    let mut world = World::with(|config| config.subscription = Subscription::OnDemand).await;
    let mut session = world.subscribed().await;
    let resources = vec![spoilt("a", "1", [10, 0, 0, 1]), service("b.example", "1")];
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
    assert_eq!(told(&world.changes().await), [format!("!{}", uid("a"))]);
}

/// What stands for a policy that was refused.
async fn stand_in(world: &mut World, session: &mut Session, refused: Authorization) -> Policy {
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
async fn of_a_refused_policy_what_can_be_read_counts() {
    let everybody: &[&[&[_]]] = &[&[&[]]];
    let read = [
        // scope, action, dry run; then what stands in.
        (0, 7, false, PolicyScope::Global, Action::Deny),
        (1, 7, true, PolicyScope::Namespace, Action::Deny),
        (2, 1, false, PolicyScope::WorkloadSelector, Action::Deny),
        (9, 1, false, PolicyScope::WorkloadSelector, Action::Deny),
        (0, 0, false, PolicyScope::Global, Action::Allow),
    ];
    for (scope, action, dry_run, concerns, does) in read {
        let mut world = World::new().await;
        let mut session = world.subscribed().await;
        let refused = Authorization {
            // Which is not its name outside.
            name: "other".to_owned(),
            namespace: "default".to_owned(),
            scope,
            action,
            dry_run,
            ..Authorization::default()
        };
        let policy = stand_in(&mut world, &mut session, refused).await;
        assert_eq!(policy.scope, concerns);
        assert_eq!(policy.action, does);
        assert_eq!(policy.dry_run, dry_run);
        // One that allows allows nobody.
        let rules = if does == Action::Deny { everybody } else { &[] };
        assert_eq!(policy.rules, rules);
    }
}

#[tokio::test]
async fn a_policy_that_can_be_read_takes_the_place_of_what_stood_for_it() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let refused = Authorization {
        name: "guard".to_owned(),
        namespace: "default".to_owned(),
        scope: Scope::Global.into(),
        action: 7,
        ..Authorization::default()
    };
    stand_in(&mut world, &mut session, refused).await;
    session.policies("n2", vec![policy("guard", 0)]).await;
    session.acked(AUTHORIZATION_TYPE, "n2").await;
    assert_eq!(told(&world.changes().await), ["+default/guard"]);
    // What was held before stays as it was.
    session.policies("n3", vec![policy("guard", 7)]).await;
    session.nacked(AUTHORIZATION_TYPE, "n3").await;
    session
        .push(AUTHORIZATION_TYPE, "n4", vec![], &["default/guard"])
        .await;
    assert_eq!(told(&world.changes().await), ["-default/guard"]);
}
