//! When what was told counts.

use futures::FutureExt as _;

use super::*;
use admin::Readiness;
use mesh::{Uid, Workload, local};

const WAITING: &str = "the control plane";

/// A mesh whose control plane is the test.
fn told_by_hand(readiness: &Readiness) -> (Mesh, mpsc::Sender<Event>) {
    let (told, events) = mpsc::channel(16);
    let client = tokio::spawn(std::future::pending());
    let control_plane = ControlPlane::new(events, client, readiness.wait_for(WAITING));
    let mesh = Mesh {
        told: Snapshot::default(),
        current: Arc::default(),
        local: LocalMesh::default(),
        control_plane: Some(control_plane),
        demand: None,
    };
    (mesh, told)
}

fn comes(uid: &str) -> Change {
    let workload = Workload::new(uid, uid, "default", "default").unwrap();
    Change::Workload(Box::new(workload))
}

fn batch(changes: Vec<Change>, ends_push: bool) -> Event {
    Event::Changes(Batch::of(changes, ends_push))
}

fn knows(mesh: &Mesh, uid: &str) -> bool {
    mesh.current().workload_by_uid(&Uid(uid.into())).is_some()
}

fn nothing_counts(mesh: &mut Mesh) -> bool {
    mesh.changed().now_or_never().is_none()
}

#[tokio::test]
async fn nothing_counts_before_everything_was_told_once() {
    let readiness = Readiness::new();
    let (mut mesh, told) = told_by_hand(&readiness);
    told.send(batch(vec![comes("a")], true)).await.unwrap();
    assert!(nothing_counts(&mut mesh));
    assert!(!mesh.is_known() && !knows(&mesh, "a"));
    told.send(Event::Synced).await.unwrap();
    let waiting = mesh.changed().await.unwrap().waiting;
    assert_eq!(waiting.len(), 1);
    assert!(mesh.is_known() && knows(&mesh, "a"));
    assert_eq!(readiness.pending(), [WAITING], "it is not in force yet");
    mesh.in_force(Duration::ZERO);
    assert!(readiness.pending().is_empty());
}

#[tokio::test]
async fn a_push_counts_as_a_whole() {
    let readiness = Readiness::new();
    let (mut mesh, told) = told_by_hand(&readiness);
    told.send(Event::Synced).await.unwrap();
    mesh.changed().await.unwrap();
    mesh.in_force(Duration::ZERO);
    told.send(batch(vec![comes("a")], false)).await.unwrap();
    tokio::time::sleep(PAUSE.1).await;
    assert!(nothing_counts(&mut mesh));
    told.send(batch(vec![comes("b")], true)).await.unwrap();
    assert_eq!(mesh.changed().await.unwrap().waiting.len(), 2);
    assert!(knows(&mesh, "a") && knows(&mesh, "b"));
}

#[tokio::test]
async fn changes_that_follow_each_other_count_together_but_not_too_late() {
    let readiness = Readiness::new();
    let (mut mesh, told) = told_by_hand(&readiness);
    told.send(Event::Synced).await.unwrap();
    mesh.changed().await.unwrap();
    // It took long to put that in force.
    mesh.in_force(Duration::from_secs(60));
    told.send(batch(vec![comes("a")], true)).await.unwrap();
    told.send(batch(vec![comes("b")], true)).await.unwrap();
    assert!(nothing_counts(&mut mesh));
    assert_eq!(mesh.changed().await.unwrap().waiting.len(), 2);
    assert!(knows(&mesh, "a") && knows(&mesh, "b"));
}

#[tokio::test]
async fn who_waits_for_an_answer_is_answered_although_nothing_changed() {
    let readiness = Readiness::new();
    let (mut mesh, told) = told_by_hand(&readiness);
    told.send(Event::Synced).await.unwrap();
    mesh.changed().await.unwrap();
    mesh.in_force(Duration::ZERO);
    told.send(batch(Vec::new(), true)).await.unwrap();
    assert_eq!(mesh.changed().await.unwrap().waiting.len(), 1);
}

/// What settings say of these workloads.
fn settings(uids: &[&str]) -> LocalMesh {
    let workloads: Vec<String> = uids
        .iter()
        .map(|uid| format!("{{ uid: {uid}, name: of-the-settings }}"))
        .collect();
    local::parse(&format!("workloads: [{}]", workloads.join(", "))).unwrap()
}

#[tokio::test]
async fn what_the_settings_no_longer_say_is_gone_and_the_rest_stays() {
    let readiness = Readiness::new();
    let (mut mesh, told) = told_by_hand(&readiness);
    told.send(batch(vec![comes("told"), comes("both")], true))
        .await
        .unwrap();
    told.send(Event::Synced).await.unwrap();
    mesh.changed().await.unwrap();
    mesh.adopt(&settings(&["one", "two", "both"]));
    assert!(["told", "one", "two"].iter().all(|uid| knows(&mesh, uid)));
    let both = mesh.current().workload_by_uid(&Uid("both".into())).unwrap();
    assert_eq!(&*both.name, "both", "the control plane goes first");
    mesh.adopt(&settings(&["two", "three"]));
    assert!(
        ["told", "both", "two", "three"]
            .iter()
            .all(|uid| knows(&mesh, uid))
    );
    assert!(!knows(&mesh, "one"));
    told.send(batch(
        vec![Change::RemoveWorkload(Uid("told".into()))],
        true,
    ))
    .await
    .unwrap();
    mesh.changed().await.unwrap();
    assert!(!knows(&mesh, "told") && knows(&mesh, "two"));
}

#[tokio::test]
async fn settings_alone_do_not_count_before_the_control_plane_has_told_its_part() {
    let readiness = Readiness::new();
    let (mut mesh, told) = told_by_hand(&readiness);
    mesh.adopt(&settings(&["a"]));
    assert!(!knows(&mesh, "a"));
    told.send(Event::Synced).await.unwrap();
    mesh.changed().await.unwrap();
    assert!(knows(&mesh, "a"));
}

#[tokio::test]
async fn settings_that_change_in_the_middle_of_a_push_count_at_its_end() {
    let readiness = Readiness::new();
    let (mut mesh, told) = told_by_hand(&readiness);
    told.send(batch(vec![comes("old")], true)).await.unwrap();
    told.send(Event::Synced).await.unwrap();
    mesh.changed().await.unwrap();
    mesh.in_force(Duration::ZERO);
    let gone = Change::RemoveWorkload(Uid("old".into()));
    told.send(batch(vec![gone], false)).await.unwrap();
    assert!(nothing_counts(&mut mesh));
    mesh.adopt(&settings(&["a"]));
    assert!(knows(&mesh, "old") && !knows(&mesh, "a"));
    told.send(batch(vec![comes("new")], true)).await.unwrap();
    mesh.changed().await.unwrap();
    assert!(knows(&mesh, "new") && knows(&mesh, "a") && !knows(&mesh, "old"));
}

#[tokio::test]
async fn the_end_of_the_client_is_noticed() {
    let readiness = Readiness::new();
    let (mut mesh, told) = told_by_hand(&readiness);
    told.send(Event::Synced).await.unwrap();
    assert!(mesh.changed().await.is_some());
    drop(told);
    assert_eq!(mesh.changed().await.map(|told| told.changed), None);
}
