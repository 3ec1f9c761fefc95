//! When changes of the control plane and of the settings are put in force.

use futures::FutureExt as _;

use super::*;
use admin::Readiness;
use mesh::{Uid, Workload, local};

const WAITING: &str = "the control plane";

/// A mesh, and the sender that plays its control plane.
fn mesh_with_control_plane(readiness: &Readiness) -> (Mesh, mpsc::Sender<Event>) {
    let (control_plane_events, events) = mpsc::channel(16);
    let client = tokio::spawn(std::future::pending());
    let control_plane = ControlPlane::new(events, client, readiness.wait_for(WAITING));
    let mesh = Mesh {
        received: Snapshot::default(),
        current: Arc::default(),
        local: LocalMesh::default(),
        control_plane: Some(control_plane),
        fetcher: None,
    };
    (mesh, control_plane_events)
}

fn workload_added(uid: &str) -> Change {
    let workload = Workload::new(uid, uid, "default", "default").unwrap();
    Change::Workload(Box::new(workload))
}

fn batch(changes: Vec<Change>, ends_push: bool) -> Event {
    Event::Changes(Batch::of(changes, ends_push))
}

fn knows(mesh: &Mesh, uid: &str) -> bool {
    mesh.current().workload_by_uid(&Uid(uid.into())).is_some()
}

fn nothing_is_due(mesh: &mut Mesh) -> bool {
    mesh.changed().now_or_never().is_none()
}

#[tokio::test]
async fn no_change_is_in_force_before_the_first_sync() {
    let readiness = Readiness::new();
    let (mut mesh, events) = mesh_with_control_plane(&readiness);
    events
        .send(batch(vec![workload_added("a")], true))
        .await
        .unwrap();
    assert!(nothing_is_due(&mut mesh));
    assert!(!mesh.is_known() && !knows(&mesh, "a"));
    events.send(Event::Synced).await.unwrap();
    let waiting = mesh.changed().await.unwrap().waiting;
    assert_eq!(waiting.len(), 1);
    assert!(mesh.is_known() && knows(&mesh, "a"));
    assert_eq!(readiness.pending(), [WAITING], "it is not in force yet");
    mesh.in_force(Duration::ZERO);
    assert!(readiness.pending().is_empty());
}

#[tokio::test]
async fn a_push_is_put_in_force_as_a_whole() {
    let readiness = Readiness::new();
    let (mut mesh, events) = mesh_with_control_plane(&readiness);
    events.send(Event::Synced).await.unwrap();
    mesh.changed().await.unwrap();
    mesh.in_force(Duration::ZERO);
    events
        .send(batch(vec![workload_added("a")], false))
        .await
        .unwrap();
    tokio::time::sleep(MAX_PAUSE).await;
    assert!(nothing_is_due(&mut mesh));
    events
        .send(batch(vec![workload_added("b")], true))
        .await
        .unwrap();
    assert_eq!(mesh.changed().await.unwrap().waiting.len(), 2);
    assert!(knows(&mesh, "a") && knows(&mesh, "b"));
}

#[tokio::test]
async fn changes_in_quick_succession_are_put_in_force_together_and_soon() {
    let readiness = Readiness::new();
    let (mut mesh, events) = mesh_with_control_plane(&readiness);
    events.send(Event::Synced).await.unwrap();
    mesh.changed().await.unwrap();
    // The change took long to put in force.
    mesh.in_force(Duration::from_secs(60));
    events
        .send(batch(vec![workload_added("a")], true))
        .await
        .unwrap();
    events
        .send(batch(vec![workload_added("b")], true))
        .await
        .unwrap();
    assert!(nothing_is_due(&mut mesh));
    assert_eq!(mesh.changed().await.unwrap().waiting.len(), 2);
    assert!(knows(&mesh, "a") && knows(&mesh, "b"));
}

#[tokio::test]
async fn a_request_is_answered_even_if_its_answer_changes_nothing() {
    let readiness = Readiness::new();
    let (mut mesh, events) = mesh_with_control_plane(&readiness);
    events.send(Event::Synced).await.unwrap();
    mesh.changed().await.unwrap();
    mesh.in_force(Duration::ZERO);
    events.send(batch(Vec::new(), true)).await.unwrap();
    assert_eq!(mesh.changed().await.unwrap().waiting.len(), 1);
}

/// The mesh of settings that list these workloads.
fn settings(uids: &[&str]) -> LocalMesh {
    let workloads: Vec<String> = uids
        .iter()
        .map(|uid| format!("{{ uid: {uid}, name: of-the-settings }}"))
        .collect();
    local::parse(&format!("workloads: [{}]", workloads.join(", "))).unwrap()
}

#[tokio::test]
async fn a_workload_removed_from_the_settings_is_gone_and_the_others_stay() {
    let readiness = Readiness::new();
    let (mut mesh, events) = mesh_with_control_plane(&readiness);
    events
        .send(batch(
            vec![workload_added("pushed"), workload_added("both")],
            true,
        ))
        .await
        .unwrap();
    events.send(Event::Synced).await.unwrap();
    mesh.changed().await.unwrap();
    mesh.apply_local(&settings(&["one", "two", "both"]));
    assert!(["pushed", "one", "two"].iter().all(|uid| knows(&mesh, uid)));
    let both = mesh.current().workload_by_uid(&Uid("both".into())).unwrap();
    assert_eq!(&*both.name, "both", "the control plane's workload wins");
    mesh.apply_local(&settings(&["two", "three"]));
    assert!(
        ["pushed", "both", "two", "three"]
            .iter()
            .all(|uid| knows(&mesh, uid))
    );
    assert!(!knows(&mesh, "one"));
    events
        .send(batch(
            vec![Change::RemoveWorkload(Uid("pushed".into()))],
            true,
        ))
        .await
        .unwrap();
    mesh.changed().await.unwrap();
    assert!(!knows(&mesh, "pushed") && knows(&mesh, "two"));
}

#[tokio::test]
async fn settings_are_not_in_force_before_the_first_sync() {
    let readiness = Readiness::new();
    let (mut mesh, events) = mesh_with_control_plane(&readiness);
    mesh.apply_local(&settings(&["a"]));
    assert!(!knows(&mesh, "a"));
    events.send(Event::Synced).await.unwrap();
    mesh.changed().await.unwrap();
    assert!(knows(&mesh, "a"));
}

#[tokio::test]
async fn settings_that_change_during_a_push_take_effect_at_its_end() {
    let readiness = Readiness::new();
    let (mut mesh, events) = mesh_with_control_plane(&readiness);
    events
        .send(batch(vec![workload_added("old")], true))
        .await
        .unwrap();
    events.send(Event::Synced).await.unwrap();
    mesh.changed().await.unwrap();
    mesh.in_force(Duration::ZERO);
    let gone = Change::RemoveWorkload(Uid("old".into()));
    events.send(batch(vec![gone], false)).await.unwrap();
    assert!(nothing_is_due(&mut mesh));
    mesh.apply_local(&settings(&["a"]));
    assert!(knows(&mesh, "old") && !knows(&mesh, "a"));
    events
        .send(batch(vec![workload_added("new")], true))
        .await
        .unwrap();
    mesh.changed().await.unwrap();
    assert!(knows(&mesh, "new") && knows(&mesh, "a") && !knows(&mesh, "old"));
}

#[tokio::test]
async fn the_end_of_the_client_is_reported() {
    let readiness = Readiness::new();
    let (mut mesh, events) = mesh_with_control_plane(&readiness);
    events.send(Event::Synced).await.unwrap();
    assert!(mesh.changed().await.is_some());
    drop(events);
    assert_eq!(mesh.changed().await.map(|update| update.changed), None);
}
