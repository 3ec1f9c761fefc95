//! Which change revokes which connections.

use futures::FutureExt as _;

use super::*;
use mesh::{LocalPod, PathSettings};
use mesh::{Uid, local};

const PODS: [(&str, u64); 2] = [("a", 1), ("b", 2)];

/// A mesh of the two pods, each in its own namespace, with these policies.
fn view(policies: &str, uids: &[&str]) -> Arc<View> {
    let workloads: Vec<String> = uids
        .iter()
        .enumerate()
        .map(|(at, uid)| {
            format!("{{ uid: {uid}, name: {uid}, namespace: {uid}, workloadIps: [10.0.0.{at}], protocol: HBONE }}")
        })
        .collect();
    let text = format!(
        "{{ workloads: [{}], policies: [{policies}] }}",
        workloads.join(", ")
    );
    let mesh = Arc::new(local::parse(&text).unwrap().into_snapshot());
    with(mesh)
}

fn with(mesh: Arc<mesh::Snapshot>) -> Arc<View> {
    let pods = PODS.map(|(uid, cookie)| LocalPod {
        uid: Uid(uid.into()),
        account: None,
        announced: None,
        cookie: NetnsCookie(cookie),
        addresses: Vec::new(),
        redirected: false,
        leaving: false,
    });
    Arc::new(View::new(mesh, pods, &PathSettings::default()))
}

fn policy(action: &str, namespace: &str, client: &str) -> String {
    format!(
        "{{ name: p, namespace: {namespace}, scope: Namespace, action: {action}, rules: [[[{{ principals: [{{ exact: cluster.local/ns/{client}/sa/default }}] }}]]] }}"
    )
}

/// A connection to a pod from a client, which is given by its namespace.
fn admitted(client: Option<&str>, pod: u64) -> AuthorizationContext {
    AuthorizationContext {
        pod: NetnsCookie(pod),
        source: client.map(|client| Identity::new("cluster.local", client, "default").unwrap()),
        peer: "10.0.9.9".parse().unwrap(),
        named: None,
        destination: "10.0.0.1:80".parse().unwrap(),
    }
}

fn is_cut(live: &ConnectionGuard) -> Option<String> {
    live.revoked().now_or_never().map(|why| why.to_string())
}

const BOTH: &[&str] = &["a", "b"];

#[test]
fn a_deny_cuts_whom_it_concerns_and_nobody_else() {
    let before = view("", BOTH);
    let set = AuthorizedConnections::new(before.clone());
    let take = |client, pod| set.admit(admitted(client, pod), &before, &before).unwrap();
    let concerned = take(Some("x"), 1);
    let other_client = take(Some("y"), 1);
    let other_pod = take(Some("x"), 2);
    let plaintext = take(None, 1);
    set.reauthorize(&view(&policy("Deny", "a", "x"), BOTH));
    assert_eq!(
        is_cut(&concerned).as_deref(),
        Some("no longer allowed: denied by policy a/p")
    );
    for live in [&other_client, &other_pod, &plaintext] {
        assert_eq!(is_cut(live), None);
    }
}

#[test]
fn an_allow_for_others_cuts_and_so_does_the_end_of_ones_own() {
    let before = view(&policy("Allow", "a", "x"), BOTH);
    let set = AuthorizedConnections::new(before.clone());
    let live = set.admit(admitted(Some("x"), 1), &before, &before).unwrap();
    set.reauthorize(&view(&policy("Allow", "b", "x"), BOTH));
    assert_eq!(is_cut(&live), None, "no ALLOW applies to it any more");
    set.reauthorize(&view(&policy("Allow", "a", "y"), BOTH));
    assert!(is_cut(&live).is_some());
}

#[test]
fn a_pod_that_leaves_the_mesh_takes_its_connections_along() {
    let before = view("", BOTH);
    let set = AuthorizedConnections::new(before.clone());
    let live = set.admit(admitted(Some("x"), 1), &before, &before).unwrap();
    set.reauthorize(&view("", &["b"]));
    assert!(is_cut(&live).unwrap().contains("not in the mesh"));
}

#[test]
fn a_pod_that_is_somebody_else_than_the_mesh_says_keeps_nothing() {
    let before = view("", BOTH);
    let set = AuthorizedConnections::new(before.clone());
    let live = set.admit(admitted(Some("x"), 1), &before, &before).unwrap();
    let pod = LocalPod {
        uid: Uid("a".into()),
        account: Some("another".into()),
        announced: None,
        cookie: NetnsCookie(1),
        addresses: Vec::new(),
        redirected: false,
        leaving: false,
    };
    let after = View::new(before.mesh.clone(), [pod], &PathSettings::default());
    set.reauthorize(&Arc::new(after));
    assert!(is_cut(&live).is_some());
}

#[test]
fn what_a_pod_that_left_the_node_has_open_is_left_to_drain() {
    let before = view("", BOTH);
    let set = AuthorizedConnections::new(before.clone());
    let live = set.admit(admitted(Some("x"), 1), &before, &before).unwrap();
    let after = View::new(before.mesh.clone(), [], &PathSettings::default());
    set.reauthorize(&Arc::new(after));
    assert_eq!(is_cut(&live), None);
}

#[test]
fn a_task_that_waits_is_woken() {
    let before = view("", BOTH);
    let set = AuthorizedConnections::new(before.clone());
    let live = set.admit(admitted(Some("x"), 1), &before, &before).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let change = async {
            tokio::task::yield_now().await;
            set.reauthorize(&view(&policy("Deny", "a", "x"), BOTH));
        };
        let (why, ()) = tokio::join!(live.revoked(), change);
        assert!(matches!(why, Revoked::Denied(_)));
    });
}

#[test]
fn who_was_judged_by_an_older_view_is_judged_again_on_the_way_in() {
    let (before, after) = (view("", BOTH), view(&policy("Deny", "a", "x"), BOTH));
    let set = AuthorizedConnections::new(before.clone());
    // `reauthorize` has already run for the change and would not run again.
    set.reauthorize(&after);
    assert!(set.admit(admitted(Some("x"), 1), &before, &after).is_err());
    assert!(set.admit(admitted(Some("y"), 1), &before, &after).is_ok());
}

#[test]
fn who_came_between_two_changes_is_judged_although_the_policies_are_those_of_before() {
    let denying = view(&policy("Deny", "a", "x"), BOTH);
    let set = AuthorizedConnections::new(denying.clone());
    let allowing = view("", BOTH);
    let live = set
        .admit(admitted(Some("x"), 1), &allowing, &allowing)
        .unwrap();
    // The same policy objects as in the set's last view.
    set.reauthorize(&with(denying.mesh.clone()));
    assert!(is_cut(&live).is_some());
}

#[test]
fn what_has_ended_is_forgotten() {
    let before = view("", BOTH);
    let set = AuthorizedConnections::new(before.clone());
    drop(set.admit(admitted(None, 1), &before, &before));
    assert!(set.entries.borrow().is_empty());
}

#[test]
fn who_was_vouched_for_counts_no_more_when_the_waypoint_is_withdrawn() {
    // The pod lets in one client's address; the client comes through a waypoint.
    let mesh = |waypoint: &str| {
        let text = format!(
            r#"
workloads:
- {{ uid: a, name: a, namespace: a, workloadIps: ["10.0.0.1"], protocol: HBONE{waypoint} }}
- {{ uid: wp, name: wp, serviceAccount: wp, workloadIps: ["10.0.9.9"], protocol: HBONE }}
policies:
- {{ name: p, namespace: a, scope: Namespace, action: Allow, rules: [[[{{ sourceIps: ["10.0.7.7/32"] }}]]] }}
"#
        );
        local::parse(&text).unwrap().into_snapshot()
    };
    let behind = ", waypoint: { destination: /10.0.9.9 }";
    let before = with(Arc::new(mesh(behind)));
    let set = AuthorizedConnections::new(before.clone());
    let through = |named: Option<&str>| AuthorizationContext {
        source: Some(Identity::new("cluster.local", "default", "wp").unwrap()),
        named: named.map(|named| named.parse().unwrap()),
        ..admitted(None, 1)
    };
    let admit = |named| set.admit(through(named), &before, &with(before.mesh.clone()));
    let live = set
        .admit(through(Some("10.0.7.7")), &before, &before)
        .unwrap();
    assert!(admit(Some("10.0.7.7")).is_ok());
    assert!(admit(Some("10.0.7.8")).is_err() && admit(None).is_err());
    // The same policies: only the peers that may state a client's address change.
    let mut without = (*before.mesh).clone();
    let workload = without.workload_by_uid(&Uid("a".into())).unwrap();
    let mut workload = (**workload).clone();
    workload.waypoint = None;
    without.apply(mesh::Change::Workload(Box::new(workload)));
    set.reauthorize(&with(Arc::new(without)));
    assert!(is_cut(&live).is_some());
}
