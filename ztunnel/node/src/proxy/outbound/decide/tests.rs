//! The loop that decides, obtains what is missing and decides again, with a control plane and a
//! resolver that are tables.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::watch;

use super::*;
use crate::discovery::{DiscoveryFuture, OnDemandClient, ResourceFetcher};
use crate::fastpath::FastPath;
use crate::pods::{Netns, Pod};
use crate::proxy::connection_table::ConnectionTable;
use crate::proxy::inputs::InputError;
use crate::proxy::recheck::RecheckQueue;
use crate::proxy::resolve::{Resolve, Resolving};
use crate::proxy::state::ProxyState;
use crate::proxy::wait::{WaitError, WorkloadWaits};
use crate::proxy::worker_state::WorkerState;
use mesh::route::Route;
use mesh::{
    FetchOutcome, Identity, LocalPod, NetnsCookie, PathSettings, Snapshot, Uid, Workload, local,
};
use settings::Settings;
use telemetry::Telemetry;
use tunnel::tls;

const CLIENT: &str = "{ uid: client, name: client, namespace: shop, workloadIps: [10.0.0.1] }";
const SERVER: &str = "{ uid: server, name: server, namespace: shop, workloadIps: [10.0.0.2] }";
/// A workload whose address is a name.
const NAMED: &str = "{ uid: named, name: named, namespace: shop, hostname: db.example, services: \
                     { shop/db.shop.svc: { 80: 8080 } } }";
const SERVICE: &str = "{ name: db, namespace: shop, hostname: db.shop.svc, vips: [/10.1.0.1], \
                       ports: { 80: 8080 } }";
/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(600);
/// For a wait that is expected to expire.
const SHORT: Duration = Duration::from_millis(50);

/// A mesh of these workloads and services.
fn mesh(workloads: &[&str], services: &[&str]) -> Snapshot {
    let list = |entries: &[&str]| format!("[{}]", entries.join(", "));
    let (workloads, services) = (list(workloads), list(services));
    let yaml = format!("workloads: {workloads}\nservices: {services}\n");
    local::parse(&yaml).unwrap().into_snapshot()
}

fn view(mesh: Snapshot, pod: NetnsCookie) -> View {
    let pod = LocalPod {
        uid: Uid("client".into()),
        account: None,
        announced: None,
        cookie: pod,
        addresses: vec![[10, 0, 0, 1].into()],
        redirected: false,
        leaving: false,
    };
    View::new(Arc::new(mesh), [pod], &PathSettings::default())
}

/// Answers with what it is given, and puts a mesh in force first.
#[derive(Debug)]
struct ControlPlane {
    answer: FetchOutcome,
    pushes: Mutex<Option<Snapshot>>,
    requests: Mutex<Vec<ResourceKey>>,
    fast_path: Mutex<Option<(Arc<FastPath>, NetnsCookie)>>,
}

impl ControlPlane {
    fn answering(answer: FetchOutcome, pushes: Option<Snapshot>) -> Arc<Self> {
        Arc::new(Self {
            answer,
            pushes: Mutex::new(pushes),
            requests: Mutex::default(),
            fast_path: Mutex::default(),
        })
    }
}

impl ResourceFetcher for ControlPlane {
    fn fetch(&self, key: &ResourceKey) -> DiscoveryFuture {
        self.requests.lock().unwrap().push(key.clone());
        if let Some(mesh) = self.pushes.lock().unwrap().take() {
            let fast_path = self.fast_path.lock().unwrap();
            let (fast_path, pod) = fast_path.as_ref().unwrap();
            fast_path.change(view(mesh, *pod));
        }
        Box::pin(std::future::ready(self.answer))
    }
}

/// Resolves every name to these addresses.
#[derive(Debug)]
struct Names(Vec<IpAddr>);

impl Resolve for Names {
    fn resolve(&self, _hostname: &Arc<str>, _pod: NetnsCookie) -> Resolving {
        Box::pin(std::future::ready(Ok(self.0.clone())))
    }
}

#[derive(Debug)]
struct NoCertificates;

impl tls::Issuer for NoCertificates {
    fn issue<'a>(
        &'a self,
        _identity: &'a Identity,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<tls::Issued, tls::IssueError>> + Send + 'a>>
    {
        unreachable!("a decision needs no certificate")
    }
}

struct World {
    context: std::rc::Rc<PodContext>,
    /// Keeps the pod from draining.
    _running: watch::Sender<bool>,
    app: TcpStream,
    /// The application's end.
    _client: TcpStream,
}

impl World {
    /// A pod of the settings with this mesh, whose waits for workloads last this long.
    async fn new(mesh: Snapshot, wait: Duration, control_plane: Option<Arc<ControlPlane>>) -> Self {
        Self::with_announcement(mesh, wait, control_plane, None).await
    }

    /// As [`Self::new`], for a pod that the node agent has announced with this workload.
    async fn with_announcement(
        mesh: Snapshot,
        wait: Duration,
        control_plane: Option<Arc<ControlPlane>>,
        announced: Option<Arc<Workload>>,
    ) -> Self {
        let netns = Arc::new(Netns::own().unwrap());
        let cookie = NetnsCookie(netns.cookie());
        let telemetry = Telemetry::new(prometheus_client::metrics::counter::Counter::default());
        let on_demand = control_plane
            .clone()
            .map(|fetcher| Arc::new(OnDemandClient::new(fetcher)));
        let fast_path = Arc::new(FastPath::new(None, view(mesh, cookie), on_demand.clone()));
        if let Some(control_plane) = &control_plane {
            *control_plane.fast_path.lock().unwrap() = Some((fast_path.clone(), cookie));
        }
        let runtime = tokio::runtime::Handle::current();
        let waits = telemetry.waits().clone();
        let proxy = Arc::new(ProxyState {
            waits: WorkloadWaits::new(fast_path.clone(), wait, waits),
            fast_path,
            kernel: None,
            certificates: tls::Store::new(
                Arc::new(NoCertificates),
                tls::Config::default(),
                runtime,
            ),
            resolver: Arc::new(Names(vec![[10, 0, 0, 9].into()])),
            on_demand,
            telemetry,
            connection_table: ConnectionTable::default(),
            recheck: RecheckQueue::default(),
            config: crate::assembly::path(&Settings::initial()),
        });
        let pod = Arc::new(Pod {
            uid: Uid("client".into()),
            account: None,
            announced,
            netns,
            addresses: vec![[10, 0, 0, 1].into()],
            redirected: AtomicBool::new(false),
        });
        let (running, drain) = watch::channel(false);
        let worker = WorkerState::new(&proxy);
        let context = PodContext::new(proxy, worker, pod, drain.clone(), drain);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        Self {
            context,
            _running: running,
            app: accepted.unwrap().0,
            _client: client.unwrap(),
        }
    }

    async fn decide(&self, destination: &str) -> Result<Decided, OutboundError> {
        let client = "10.0.0.1:40000".parse().unwrap();
        let destination = destination.parse().unwrap();
        let connection = self.context.connection(client, destination, Instant::now());
        decide(
            &self.context,
            &connection,
            BackendChoice::Any,
            &self.app,
            &[],
        )
        .await
    }
}

/// Where a connection that takes no tunnel goes, and the workload there.
#[track_caller]
fn passthrough(decided: Result<Decided, OutboundError>) -> (String, Option<String>) {
    let uid = |workload: &Arc<Workload>| workload.uid.0.to_string();
    match decided.map(|decided| decided.routed.route) {
        Ok(Route::Passthrough { to, workload, .. }) => (to.to_string(), workload.as_ref().map(uid)),
        Ok(other) => panic!("{other:?}"),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "local")]
#[ignore = "needs root"]
async fn a_connection_waits_for_the_pods_own_workload_and_goes_on_when_it_is_pushed() {
    let world = World::new(mesh(&[SERVER], &[]), LONG, None).await;
    let cookie = world.context.cookie();
    let push = async {
        while world.context.proxy.waits.waiting(cookie) == 0 {
            tokio::task::yield_now().await;
        }
        let pushed = view(mesh(&[CLIENT, SERVER], &[]), cookie);
        world.context.proxy.fast_path.change(pushed);
    };
    let (decided, ()) = tokio::join!(world.decide("10.0.0.2:80"), push);
    let source = decided.as_ref().map(|decided| &*decided.source.uid.0);
    assert_eq!(source.ok(), Some("client"));
    assert_eq!(
        passthrough(decided),
        ("10.0.0.2:80".into(), Some("server".into()))
    );
}

#[tokio::test(flavor = "local")]
#[ignore = "needs root"]
async fn a_pod_whose_workload_is_not_pushed_in_time_is_refused_by_name() {
    let world = World::new(mesh(&[SERVER], &[]), SHORT, None).await;
    match world.decide("10.0.0.2:80").await.map(drop) {
        Err(OutboundError::Input(InputError::Wait(WaitError::Expired { uid, .. }))) => {
            assert_eq!(&*uid, "client");
        }
        other => panic!("{other:?}"),
    }
}

fn announced(account: &str) -> Option<Arc<Workload>> {
    let workload = Workload::new("client", "client", "shop", account).unwrap();
    Some(Arc::new(workload))
}

#[tokio::test(flavor = "local")]
#[ignore = "needs root"]
async fn an_announced_pod_goes_on_with_its_announced_identity_after_the_wait() {
    let known = mesh(&[SERVER], &[]);
    let world = World::with_announcement(known, SHORT, None, announced("own")).await;
    for _first_and_later in 0..2 {
        let decided = world.decide("10.0.0.2:80").await.unwrap();
        assert!(decided.source.identity.as_str().ends_with("/sa/own"));
    }
    // The workload of the mesh takes its place.
    let pushed = view(mesh(&[CLIENT, SERVER], &[]), world.context.cookie());
    world.context.proxy.fast_path.change(pushed);
    let decided = world.decide("10.0.0.2:80").await.unwrap();
    assert!(decided.source.identity.as_str().ends_with("/sa/default"));
}

/// Before the control plane has sent the whole mesh, every destination looks as if it were outside.
#[tokio::test(flavor = "local")]
#[ignore = "needs root"]
async fn an_announced_pod_is_refused_while_the_mesh_is_not_known_at_all() {
    let nothing = mesh(&[], &[]);
    let world = World::with_announcement(nothing, SHORT, None, announced("own")).await;
    let empty = View::new(Arc::new(mesh(&[], &[])), [], &PathSettings::default());
    world.context.proxy.fast_path.change(empty);
    match world.decide("10.0.0.2:80").await.map(drop) {
        Err(OutboundError::Input(InputError::Wait(WaitError::Expired { .. }))) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "local")]
#[ignore = "needs root"]
async fn an_announced_pod_does_not_need_the_control_planes_answer_about_itself() {
    for answer in [FetchOutcome::Unknown, FetchOutcome::Absent] {
        let control_plane = ControlPlane::answering(answer, None);
        let known = mesh(&[SERVER], &[]).partial();
        let (own, asked) = (announced("own"), Some(control_plane));
        let world = World::with_announcement(known, SHORT, asked, own).await;
        let decided = passthrough(world.decide("10.0.0.2:80").await);
        assert_eq!(
            decided,
            ("10.0.0.2:80".into(), Some("server".into())),
            "{answer:?}"
        );
    }
}

#[tokio::test(flavor = "local")]
#[ignore = "needs root"]
async fn a_resource_that_the_control_plane_finds_is_part_of_the_next_decision() {
    let whole = mesh(&[CLIENT, SERVER], &[]).partial();
    let control_plane = ControlPlane::answering(FetchOutcome::Found, Some(whole));
    let known = mesh(&[CLIENT], &[]).partial();
    let world = World::new(known, LONG, Some(control_plane.clone())).await;
    let decided = passthrough(world.decide("10.0.0.2:80").await);
    assert_eq!(decided, ("10.0.0.2:80".into(), Some("server".into())));
    let requests = control_plane.requests.lock().unwrap();
    let asked: Vec<String> = requests.iter().map(ToString::to_string).collect();
    assert_eq!(asked, ["/10.0.0.2"]);
}

#[tokio::test(flavor = "local")]
#[ignore = "needs root"]
async fn a_destination_that_the_control_plane_does_not_have_is_outside_the_mesh() {
    let control_plane = ControlPlane::answering(FetchOutcome::Absent, None);
    let known = mesh(&[CLIENT], &[]).partial();
    let world = World::new(known, LONG, Some(control_plane)).await;
    let decided = passthrough(world.decide("192.0.2.1:80").await);
    assert_eq!(decided, ("192.0.2.1:80".into(), None));
}

/// The answer "found" without the resource must not lead to plaintext, nor to a loop without end.
#[tokio::test(flavor = "local")]
#[ignore = "needs root"]
async fn a_destination_about_which_there_is_no_usable_answer_is_refused() {
    for answer in [FetchOutcome::Unknown, FetchOutcome::Found] {
        let control_plane = ControlPlane::answering(answer, None);
        let known = mesh(&[CLIENT], &[]).partial();
        let world = World::new(known, LONG, Some(control_plane.clone())).await;
        match world.decide("10.0.0.2:80").await.map(drop) {
            Err(OutboundError::Input(InputError::Discovery(failed))) => {
                assert_eq!(failed.key.to_string(), "/10.0.0.2", "{answer:?}");
            }
            other => panic!("{answer:?}: {other:?}"),
        }
        let requests = control_plane.requests.lock().unwrap();
        assert_eq!(requests.len(), 1, "{answer:?}");
    }
}

#[tokio::test(flavor = "local")]
#[ignore = "needs root"]
async fn the_name_of_a_backend_is_resolved_and_the_decision_made_with_its_address() {
    let world = World::new(mesh(&[CLIENT, NAMED], &[SERVICE]), LONG, None).await;
    let decided = passthrough(world.decide("10.1.0.1:80").await);
    assert_eq!(decided, ("10.0.0.9:8080".into(), Some("named".into())));
}
