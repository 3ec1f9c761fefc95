//! The node agent: the pods that it has announced, and the answers to its requests.
//!
//! The agent announces pods one by one. Before its first snapshot is complete, nothing is
//! reauthorized: the kernel still holds fast-path entries and connections of a previous process for
//! pods that are about to be announced, and a reauthorization without these pods would drop them.
//! The wait is bounded, because policies may have changed meanwhile.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

pub mod zds;

use crate::assembly;
use crate::enrollment::{DesiredPod, OrphanPolicy};
use crate::pods::NetnsDescriptor;
use admin::Pending;
use settings::{NodeAgent, Settings};
use zds::{Added, AnnouncedPods, Full, PodInfo, PodUid, Reply, Request};

/// How long reauthorization waits for the agent's first snapshot.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(30);

/// The agent sends a request only after the previous one was answered.
const QUEUE: usize = 1;

/// The answer to a pod that is announced after the handover.
const HANDED_OVER: &str = "this process has handed over to another process of this node; announce \
                           the pod to that one";

/// An announced pod.
#[derive(Debug, PartialEq, Eq)]
struct Announced {
    info: PodInfo,
    netns: NetnsDescriptor,
}

/// The node agent as the node sees it.
#[derive(Debug)]
pub(super) struct Agent {
    announced_pods: AnnouncedPods<Announced>,
    requests: mpsc::Receiver<Request>,
    task: AbortHandle,
    /// Until when reauthorization waits for the first snapshot; none once the wait is over.
    snapshot_due: Option<Instant>,
    /// Keeps the node unready until the first snapshot is applied.
    pending: Option<Pending>,
    /// Another process serves the pods.
    retired: bool,
}

/// What the node has to do about a request.
#[derive(Debug)]
pub(super) enum Task {
    /// Nothing.
    None,
    /// Enroll this pod, and answer.
    Enroll(Box<DesiredPod>, Reply),
    /// Reconcile all pods, and answer.
    Reconcile(Reply),
}

impl Agent {
    /// Connects to the node agent; none if the settings name none. `wait_for` keeps the node unready
    /// until the first snapshot is applied.
    pub(super) fn of(
        agent: Option<&NodeAgent>,
        wait_for: impl FnOnce() -> Pending,
    ) -> Option<Self> {
        let agent = agent?;
        let (sender, requests) = mpsc::channel(QUEUE);
        let config = zds::Config::new(agent.socket.clone());
        Some(Self {
            announced_pods: AnnouncedPods::default(),
            requests,
            task: tokio::spawn(zds::follow(config, sender)).abort_handle(),
            snapshot_due: Some(Instant::now() + SNAPSHOT_TIMEOUT),
            pending: Some(wait_for()),
            retired: false,
        })
    }

    /// Another process serves the pods from now on. While the connection lasts, the agent still
    /// reports to this process the pods that leave. This process does not reconnect, because the
    /// agent announces new pods to the process that connected last.
    pub(super) fn retire(&mut self) {
        self.retired = true;
        self.snapshot_due = None;
    }

    /// Waits for the agent's next request; forever if another process serves the pods and the
    /// connection has ended. None: the client's task has stopped, which it never does by itself.
    /// Safe to cancel.
    pub(super) async fn request(&mut self) -> Option<Request> {
        match self.requests.recv().await {
            None if self.retired => std::future::pending().await,
            request => request,
        }
    }

    /// Records a request, and returns what the node has to do about it.
    pub(super) fn handle_request(&mut self, request: Request, settings: &Settings) -> Task {
        match request {
            Request::Connected if self.retired => {
                self.task.abort();
                Task::None
            }
            Request::Add { uid, reply, .. } if self.retired => {
                tracing::info!(pod = %uid, "refused a pod: this process has handed over");
                answer(reply, Err(HANDED_OVER.to_owned()));
                Task::None
            }
            Request::Connected => {
                tracing::info!("connected to the node agent");
                self.announced_pods.begin_snapshot();
                Task::None
            }
            Request::Add {
                uid,
                info,
                netns,
                reply,
            } => self.add(uid, Announced { info, netns }, reply, settings),
            Request::Keep { uid, reply } => {
                match self.announced_pods.keep(&uid) {
                    Ok(()) => answer(reply, Ok(())),
                    Err(full) => refuse(&uid, &full, reply),
                }
                Task::None
            }
            Request::Delete { uid, reply } => {
                tracing::info!(pod = %uid, "the node agent reports that the pod has left");
                self.announced_pods.delete(&uid);
                Task::Reconcile(reply)
            }
            Request::SnapshotSent { reply } => {
                let left = self.announced_pods.complete().len();
                let pods = self.announced_pods.pods().len();
                tracing::info!(pods, left, "the node agent's snapshot is complete");
                for uid in self.announced_pods.unknown() {
                    tracing::warn!(
                        pod = %uid,
                        "the node agent keeps a pod without having sent its network namespace: its \
                         connections are refused; restart the pod"
                    );
                }
                Task::Reconcile(reply)
            }
        }
    }

    fn add(&mut self, uid: PodUid, pod: Announced, reply: Reply, settings: &Settings) -> Task {
        let desired = assembly::announced(settings, &uid, &pod.info, &pod.netns);
        match self.announced_pods.add(uid.clone(), pod) {
            Ok(Added::Same) => tracing::debug!(pod = %desired.key, "pod announced again"),
            Ok(Added::New) => {
                tracing::debug!(pod = %desired.key, workload = %desired.uid, "pod announced");
            }
            Ok(Added::Replaced(_)) => {
                tracing::info!(
                    pod = %desired.key, workload = %desired.uid,
                    "pod announced again with another workload or network namespace"
                );
            }
            Err(full) => {
                refuse(&uid, &full, reply);
                return Task::None;
            }
        }
        Task::Enroll(Box::new(desired), reply)
    }

    /// The announced pods.
    pub(super) fn desired_pods(&self, settings: &Settings) -> impl Iterator<Item = DesiredPod> {
        let pods = self.announced_pods.pods();
        pods.map(|(uid, pod)| assembly::announced(settings, uid, &pod.info, &pod.netns))
    }

    /// The number of announced pods.
    pub(super) fn count(&self) -> usize {
        self.announced_pods.pods().len()
    }

    /// What to do with pods that are not announced: the agent may be about to announce them.
    pub(super) fn orphan_policy(&self) -> OrphanPolicy {
        if self.announced_pods.is_whole() {
            OrphanPolicy::Detach
        } else {
            OrphanPolicy::Retain
        }
    }

    /// Until when reauthorization waits for the first snapshot; none once the wait is over.
    pub(super) const fn snapshot_due(&self) -> Option<Instant> {
        self.snapshot_due
    }

    /// Reauthorization no longer waits for the first snapshot.
    pub(super) fn stop_waiting(&mut self) {
        self.snapshot_due = None;
    }

    /// The node has reconciled its pods with a complete snapshot.
    pub(super) fn snapshot_applied(&mut self) {
        self.snapshot_due = None;
        if let Some(pending) = self.pending.take() {
            pending.done();
        }
    }

    /// Whether the snapshot of this connection is complete.
    pub(super) fn is_complete(&self) -> bool {
        self.announced_pods.is_complete()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Refuses a pod beyond the limit: its redirected connections find no listener. After this answer
/// the agent does not let a new pod start.
fn refuse(uid: &PodUid, full: &Full, reply: Reply) {
    tracing::error!(pod = %uid, "cannot serve the pod: {full}");
    answer(reply, Err(full.to_string()));
}

/// Answers a request. If the connection has ended meanwhile, the agent repeats its requests on the
/// next one.
pub(super) fn answer(reply: Reply, answer: Result<(), String>) {
    if reply.send(answer).is_err() {
        tracing::debug!("the node agent has disconnected before it was answered");
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use admin::Readiness;

    const WAITING: &str = "the node agent's pods";

    /// An agent without a connection: the tests make its requests.
    fn agent(readiness: &Readiness) -> (Agent, Settings) {
        let mut settings = Settings::initial();
        settings.node_agent = Some(NodeAgent {
            socket: "/nonexistent/ztunnel.sock".into(),
        });
        let agent =
            Agent::of(settings.node_agent.as_ref(), || readiness.wait_for(WAITING)).unwrap();
        (agent, settings)
    }

    fn uid(text: &str) -> PodUid {
        PodUid(text.into())
    }

    fn reply() -> Reply {
        oneshot::channel().0
    }

    #[tokio::test]
    async fn reauthorization_and_readiness_wait_for_the_first_snapshot_only() {
        let readiness = Readiness::new();
        let (mut agent, settings) = agent(&readiness);
        let handle_request = |agent: &mut Agent, request| agent.handle_request(request, &settings);
        assert!(matches!(
            handle_request(&mut agent, Request::Connected),
            Task::None
        ));
        assert!(
            agent
                .snapshot_due()
                .is_some_and(|until| until > Instant::now())
        );
        assert_eq!(readiness.pending(), [WAITING]);
        let sent = Request::SnapshotSent { reply: reply() };
        assert!(matches!(
            handle_request(&mut agent, sent),
            Task::Reconcile(_)
        ));
        assert!(agent.is_complete());
        agent.snapshot_applied();
        assert_eq!((agent.snapshot_due(), readiness.pending().len()), (None, 0));
        handle_request(&mut agent, Request::Connected);
        assert!(!agent.is_complete());
        assert_eq!((agent.snapshot_due(), readiness.pending().len()), (None, 0));
    }

    #[tokio::test]
    async fn an_agent_that_does_not_connect_delays_reauthorization_for_a_bounded_time() {
        let readiness = Readiness::new();
        let (mut agent, _settings) = agent(&readiness);
        let until = agent.snapshot_due().unwrap();
        assert!(until <= Instant::now() + SNAPSHOT_TIMEOUT);
        agent.stop_waiting();
        assert_eq!(agent.snapshot_due(), None);
        assert_eq!(readiness.pending(), [WAITING], "the node stays unready");
    }

    #[tokio::test]
    async fn orphans_are_detached_only_when_every_announced_pod_is_known() {
        let readiness = Readiness::new();
        let (mut agent, settings) = agent(&readiness);
        let handle_request =
            |agent: &mut Agent, request| drop(agent.handle_request(request, &settings));
        assert_eq!(agent.orphan_policy(), OrphanPolicy::Retain);
        handle_request(&mut agent, Request::Connected);
        let (reply, mut answer) = oneshot::channel();
        let uid = uid("pod-1");
        let keep = Request::Keep {
            uid: uid.clone(),
            reply,
        };
        handle_request(&mut agent, keep);
        assert_eq!(answer.try_recv().unwrap(), Ok(()));
        handle_request(
            &mut agent,
            Request::SnapshotSent {
                reply: self::reply(),
            },
        );
        // A captured pod of a previous process may be this one.
        assert_eq!(agent.orphan_policy(), OrphanPolicy::Retain);
        handle_request(
            &mut agent,
            Request::Delete {
                uid,
                reply: self::reply(),
            },
        );
        assert_eq!(agent.orphan_policy(), OrphanPolicy::Detach);
        handle_request(&mut agent, Request::Connected);
        assert_eq!(agent.orphan_policy(), OrphanPolicy::Retain);
    }

    #[tokio::test]
    async fn after_the_handover_pods_that_leave_are_handled_and_the_client_does_not_reconnect() {
        let readiness = Readiness::new();
        let (mut agent, settings) = agent(&readiness);
        assert!(matches!(
            agent.handle_request(Request::Connected, &settings),
            Task::None
        ));
        agent.retire();
        assert_eq!(agent.snapshot_due(), None);
        let delete = Request::Delete {
            uid: uid("pod-1"),
            reply: reply(),
        };
        assert!(matches!(
            agent.handle_request(delete, &settings),
            Task::Reconcile(_)
        ));
        agent.handle_request(Request::Connected, &settings);
        let ended = tokio::time::timeout(Duration::from_secs(5), agent.requests.recv());
        assert!(ended.await.unwrap().is_none(), "the client reconnects");
    }

    #[tokio::test]
    async fn without_a_socket_in_the_settings_there_is_no_agent() {
        let none = || unreachable!("there is nothing to wait for");
        assert!(Agent::of(None, none).is_none());
    }

    #[test]
    fn an_announced_workload_has_the_names_of_the_control_plane() {
        let mut settings = Settings::initial();
        settings.cluster_id = "cluster1".into();
        settings.trust_domain = "example.org".into();
        let info = PodInfo {
            name: "web-0".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
        };
        settings.network = "net".into();
        let workload = assembly::workload(&settings, &info).unwrap();
        assert_eq!(&*workload.uid.0, "cluster1//Pod/shop/web-0");
        let identity = workload.identity.as_str();
        assert_eq!(identity, "spiffe://example.org/ns/shop/sa/web");
        let names = [&workload.network, &workload.cluster_id, &workload.node];
        assert_eq!(
            names.map(|name| &**name),
            ["net", "cluster1", &*settings.node]
        );
    }
}
