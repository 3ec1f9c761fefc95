//! Tests of the waits for a workload, without connections.

use std::future::pending;
use std::rc::Rc;

use tokio::task::JoinHandle;

use super::*;
use mesh::{LocalPod, PathSettings};
use mesh::{Snapshot, Uid, Workload};

/// Longer than any test takes: a wait that ends has not reached its limit.
const LIMIT: Duration = Duration::from_secs(600);
/// The limit for waits that are expected to expire.
const BRIEFLY: Duration = Duration::from_millis(50);
const POD: NetnsCookie = NetnsCookie(1);
const NEIGHBOUR: NetnsCookie = NetnsCookie(2);

struct World {
    fast_path: Arc<FastPath>,
    waits: Rc<WorkloadWaits>,
    metrics: WaitMetrics,
}

/// A view of a mesh with these workloads, and of one pod whose workload is `new`.
fn view(known: &[&str]) -> View {
    let workload = |uid: &&str| Workload::new(uid, uid, "default", "default").unwrap();
    let workloads = known.iter().map(workload).collect();
    let mesh = Snapshot::build(workloads, Vec::new(), Vec::new());
    let pod = LocalPod {
        uid: Uid("new".into()),
        account: None,
        announced: None,
        cookie: POD,
        addresses: vec![[10, 0, 0, 1].into()],
        redirected: false,
        leaving: false,
    };
    View::new(Arc::new(mesh), [pod], &PathSettings::default())
}

impl World {
    fn with_limit(limit: Duration) -> Self {
        let fast_path = Arc::new(FastPath::new(None, view(&[]), None));
        let metrics = WaitMetrics::default();
        Self {
            waits: Rc::new(WorkloadWaits::new(
                fast_path.clone(),
                limit,
                metrics.clone(),
            )),
            fast_path,
            metrics,
        }
    }

    /// Starts a wait for the pod's workload.
    fn begin(
        &self,
        pod: NetnsCookie,
        kind: WaitKind,
        interrupted: impl Future<Output = Interrupted> + 'static,
    ) -> JoinHandle<Result<(), WaitError>> {
        let waits = self.waits.clone();
        tokio::task::spawn_local(async move {
            let uid: Arc<str> = "new".into();
            let awaited = Awaited {
                pod,
                uid: &uid,
                deadline: waits.deadline(kind, std::time::Instant::now()),
            };
            let known = |view: &View| !view.is_expected("new");
            waits.wait(awaited, known, interrupted).await
        })
    }

    fn outbound(&self) -> JoinHandle<Result<(), WaitError>> {
        self.begin(POD, WaitKind::Outbound, pending())
    }

    /// Runs tasks until this many connections and queries of a pod wait.
    async fn wait_until(&self, pod: NetnsCookie, taken: [usize; 2]) {
        while self.waits.lock().get(&pod) != Some(&taken) {
            tokio::task::yield_now().await;
        }
    }

    #[track_caller]
    fn counted(&self, kind: WaitKind, outcome: WaitOutcome, number: u64) {
        assert_eq!(self.metrics.count(kind, outcome), number, "{outcome:?}");
    }
}

/// Runs pending tasks.
async fn settle() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "local")]
async fn it_ends_with_the_view_that_knows_the_workload_and_not_before() {
    let world = World::with_limit(LIMIT);
    let waiting = world.outbound();
    world.wait_until(POD, [1, 0]).await;
    // A change of another workload.
    world.fast_path.change(view(&["other"]));
    settle().await;
    assert!(!waiting.is_finished());
    world.fast_path.change(view(&["other", "new"]));
    assert_eq!(waiting.await.unwrap(), Ok(()));
    world.counted(WaitKind::Outbound, WaitOutcome::Known, 1);
    assert!(world.waits.lock().is_empty(), "no place is kept");
    // A known workload needs no wait, and nothing is counted.
    assert_eq!(world.outbound().await.unwrap(), Ok(()));
    world.counted(WaitKind::Outbound, WaitOutcome::Known, 1);
}

#[tokio::test(flavor = "local")]
async fn a_view_that_is_looked_ahead_to_ends_it_too() {
    let world = World::with_limit(LIMIT);
    let waiting = world.outbound();
    world.wait_until(POD, [1, 0]).await;
    world.fast_path.look_ahead(view(&["new"]));
    assert_eq!(waiting.await.unwrap(), Ok(()));
}

#[tokio::test(flavor = "local")]
async fn without_the_workload_it_ends_after_its_time_and_says_what_to_check() {
    let world = World::with_limit(BRIEFLY);
    let began = Instant::now();
    let error = world.outbound().await.unwrap().unwrap_err();
    assert!(began.elapsed() >= BRIEFLY);
    assert_eq!(error.reason(), "unknown_workload");
    let text = error.to_string();
    for part in [
        "workload new is not in the mesh",
        "within 50ms",
        "newPods.workloadWait",
        "clusterId",
    ] {
        assert!(text.contains(part), "{text}");
    }
    world.counted(WaitKind::Outbound, WaitOutcome::Expired, 1);
}

#[tokio::test(flavor = "local")]
async fn with_no_time_to_wait_it_is_refused_at_once() {
    let world = World::with_limit(Duration::ZERO);
    let error = world.outbound().await.unwrap().unwrap_err();
    assert!(matches!(error, WaitError::Expired { .. }));
}

#[tokio::test(flavor = "local")]
async fn a_client_that_goes_and_a_pod_that_leaves_end_it_and_give_the_place_back() {
    let world = World::with_limit(LIMIT);
    for (why, outcome) in [
        (Interrupted::ClientGone, WaitOutcome::ClientGone),
        (Interrupted::Leaving, WaitOutcome::Leaving),
    ] {
        let interrupted = std::future::ready(why);
        let waiting = world.begin(POD, WaitKind::Inbound, interrupted);
        assert_eq!(waiting.await.unwrap().unwrap_err().outcome(), outcome);
        world.counted(WaitKind::Inbound, outcome, 1);
        assert!(world.waits.lock().is_empty());
    }
    // So does a wait whose task is dropped.
    let waiting = world.outbound();
    world.wait_until(POD, [1, 0]).await;
    assert_eq!(world.waits.lock().len(), 1);
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    assert!(world.waits.lock().is_empty());
}

#[tokio::test(flavor = "local")]
async fn of_one_pod_so_many_wait_and_no_more_and_others_are_not_concerned() {
    let world = World::with_limit(LIMIT);
    let kinds = [WaitKind::Outbound, WaitKind::Inbound];
    let held: Vec<_> = (0..MAX_CONNECTIONS)
        .map(|number| world.begin(POD, kinds[number % 2], pending()))
        .collect();
    world.wait_until(POD, [MAX_CONNECTIONS, 0]).await;
    for kind in kinds {
        let refused = world.begin(POD, kind, pending()).await.unwrap();
        let error = refused.unwrap_err();
        assert_eq!(error.reason(), "too_many_waiting");
        assert!(error.to_string().contains("1024 connections"), "{error}");
    }
    // Queries have places of their own, and so do other pods.
    let on_demand: Vec<_> = (0..MAX_QUERIES)
        .map(|_| world.begin(POD, WaitKind::Dns, pending()))
        .collect();
    let neighbour = world.begin(NEIGHBOUR, WaitKind::Outbound, pending());
    world.wait_until(POD, [MAX_CONNECTIONS, MAX_QUERIES]).await;
    world.wait_until(NEIGHBOUR, [1, 0]).await;
    let refused = world.begin(POD, WaitKind::Dns, pending()).await.unwrap();
    assert!(matches!(refused, Err(WaitError::TooMany { .. })));
    world.fast_path.change(view(&["new"]));
    for waiting in held.into_iter().chain(on_demand).chain([neighbour]) {
        assert_eq!(waiting.await.unwrap(), Ok(()));
    }
    world.counted(WaitKind::Dns, WaitOutcome::TooMany, 1);
    world.counted(WaitKind::Dns, WaitOutcome::Known, 256);
}
