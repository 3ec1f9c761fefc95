//! The client while the control plane is unavailable, and after it is back.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpSocket;
use tonic::{Code, Status};

use super::control_plane::{pod, policy, resource, service, uid};
use super::*;
use telemetry::XdsTermination;

async fn wait_for_count(metrics: &XdsMetrics, reason: XdsTermination, least: u64) {
    soon(async {
        while metrics.terminations(reason) < least {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_new_stream_begins_with_the_versions_of_the_held_resources() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let resources = vec![
        pod("a", "7", [10, 0, 0, 1]),
        pod("gone", "1", [10, 0, 0, 2]),
        service("b.example", ""),
        resource("garbage", "1", ADDRESS_TYPE, vec![0xff]),
    ];
    session.addresses("n1", resources).await;
    session.nacked(ADDRESS_TYPE, "n1").await;
    session
        .push(ADDRESS_TYPE, "n2", vec![], &[&uid("gone")])
        .await;
    session.acked(ADDRESS_TYPE, "n2").await;
    session.policies("n3", vec![policy("p", 0)]).await;
    session.acked(AUTHORIZATION_TYPE, "n3").await;
    assert_eq!(world.changes().await.len(), 3);
    world.changes().await;
    world.changes().await;
    world.synced().await;
    drop(session);

    let mut session = world.session().await;
    let text = |text: &str| text.to_owned();
    let policies = session.request().await;
    assert!(policies.node.is_some());
    assert_eq!(
        policies.initial_resource_versions,
        HashMap::from([(text("default/p"), text("1"))])
    );
    let addresses = session.request().await;
    assert_eq!(
        addresses.initial_resource_versions,
        HashMap::from([(uid("a"), text("7")), (text("default/b.example"), text(""))])
    );
    // A control plane without versions sends all resources again; only changes are reported.
    let again = vec![pod("a", "8", [10, 0, 0, 1]), pod("c", "1", [10, 0, 0, 3])];
    let removed = ["default/b.example"];
    session.push(ADDRESS_TYPE, "n1", again, &removed).await;
    session.acked(ADDRESS_TYPE, "n1").await;
    assert_eq!(
        summary(&world.changes().await),
        ["-default/b.example".to_owned(), format!("+{}", uid("c"))]
    );
    session.policies("n2", vec![policy("p", 0)]).await;
    session.acked(AUTHORIZATION_TYPE, "n2").await;
    world.assert_no_event();
    assert_eq!(world.metrics.terminations(XdsTermination::Complete), 1);
}

#[tokio::test]
async fn a_refused_update_keeps_the_version_of_the_held_resource() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    session
        .addresses("n1", vec![pod("a", "1", [10, 0, 0, 1])])
        .await;
    session.acked(ADDRESS_TYPE, "n1").await;
    let broken = resource(&uid("a"), "2", ADDRESS_TYPE, vec![0xff]);
    session.addresses("n2", vec![broken]).await;
    session.nacked(ADDRESS_TYPE, "n2").await;
    drop(session);
    let mut session = world.session().await;
    session.request().await;
    let addresses = session.request().await;
    assert_eq!(addresses.initial_resource_versions[&uid("a")], "1");
}

/// A socket bound to an address that other processes cannot take (`SO_REUSEPORT`).
fn reserve(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

#[tokio::test]
async fn the_client_waits_for_a_control_plane_that_starts_later() {
    // The socket reserves the port and does not listen.
    let reserved = reserve(([127, 0, 0, 1], 0).into());
    let address = reserved.local_addr().unwrap();
    let metrics = XdsMetrics::default();
    let (client, mut events) =
        Client::new(config(&format!("http://{address}")), metrics.clone()).unwrap();
    let client = tokio::spawn(client.run());
    wait_for_count(&metrics, XdsTermination::ConnectionError, 2).await;
    let mut control_plane = ControlPlane::on(reserve(address).listen(16).unwrap());
    let session = control_plane.session().await;
    session
        .addresses("n1", vec![pod("a", "1", [10, 0, 0, 1])])
        .await;
    let Some(Event::Changes(batch)) = soon(events.recv()).await else {
        panic!("expected changes")
    };
    assert_eq!(summary(&batch.changes), [format!("+{}", uid("a"))]);
    client.abort();
}

#[tokio::test]
async fn the_end_of_a_stream_is_counted_by_its_cause() {
    let mut world = World::new().await;
    let ends = [
        (Status::unavailable("going away"), XdsTermination::Reconnect),
        (Status::unknown("gone"), XdsTermination::Reconnect),
        (Status::internal("broken"), XdsTermination::Error),
    ];
    let mut seen = HashMap::new();
    for (status, reason) in ends {
        world.subscribed().await.fail(status).await;
        let count: &mut u64 = seen.entry(reason).or_default();
        *count += 1;
        wait_for_count(&world.metrics, reason, *count).await;
    }
    world.subscribed().await.fail(Status::ok("")).await;
    wait_for_count(&world.metrics, XdsTermination::Complete, 1).await;
    drop(world.subscribed().await);
    wait_for_count(&world.metrics, XdsTermination::Complete, 2).await;
    world
        .control_plane
        .refuse(Status::unauthenticated("bad token"));
    drop(world.subscribed().await);
    wait_for_count(&world.metrics, XdsTermination::ConnectionError, 1).await;
    world.subscribed().await;
}

#[tokio::test]
async fn a_response_above_the_size_limit_ends_the_stream_but_not_the_client() {
    let mut world = World::with(|config| config.max_message = 1000).await;
    let session = world.subscribed().await;
    let large = resource("x", "", ADDRESS_TYPE, vec![0; 2000]);
    session.addresses("n1", vec![large]).await;
    wait_for_count(&world.metrics, XdsTermination::Error, 1).await;
    world.assert_no_event();
    let mut session = world.subscribed().await;
    session
        .addresses("n2", vec![pod("a", "1", [10, 0, 0, 1])])
        .await;
    session.acked(ADDRESS_TYPE, "n2").await;
    assert_eq!(summary(&world.changes().await), [format!("+{}", uid("a"))]);
}

#[tokio::test]
async fn without_versions_the_first_response_of_a_stream_replaces_the_held_resources() {
    let mut world = World::new().await;
    let mut session = world.subscribed().await;
    let long = |at: u8| {
        let name = format!("{at}-{}", "x".repeat(400_000));
        pod(&name, "1", [10, 0, 0, at])
    };
    session.addresses("n1", (0..8).map(long).collect()).await;
    session.acked(ADDRESS_TYPE, "n1").await;
    assert_eq!(world.changes().await.len(), 8);
    drop(session);
    let mut session = world.session().await;
    session.request().await;
    assert!(session.request().await.initial_resource_versions.is_empty());
    let confirmed = (1..8).map(long).collect();
    session.addresses("n1", confirmed).await;
    session.acked(ADDRESS_TYPE, "n1").await;
    let changes = world.changes().await;
    let [Change::RemoveWorkload(uid)] = &*changes else {
        panic!("{:?}", summary(&changes))
    };
    assert!(uid.0.starts_with("c//v1/Pod/default/0-"));
    // Later responses are incremental.
    session.addresses("n2", vec![]).await;
    session.acked(ADDRESS_TYPE, "n2").await;
    world.assert_no_event();
}

#[tokio::test]
async fn the_client_ends_when_the_receiver_is_closed() {
    let mut world = World::new().await;
    let _session = world.subscribed().await;
    world.events.close();
    soon(&mut world.client).await.unwrap();
}

#[test]
fn an_error_has_a_likely_cause_a_reason_and_a_fault() {
    let refused = Error::Refused {
        address: "https://istiod:15012".to_owned(),
        code: Code::Unauthenticated,
        message: "no".to_owned(),
    };
    assert_eq!(
        refused.to_string(),
        "the control plane https://istiod:15012 refused the stream: Unauthenticated: no (it does not accept the token: check its expiry and its audience)"
    );
    assert_eq!(
        (refused.reason(), refused.fault().as_str()),
        ("xds_refused", "mesh")
    );
}
