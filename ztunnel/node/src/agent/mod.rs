//! What the node agent has said, and what it is told.
//!
//! Its pods come one by one. Until it has named all of them, nothing is judged anew: the kernel
//! still holds the verdicts and connections that an earlier process left for pods that are about to
//! be named, and judged without them they would all be lost. That wait has an end, as policies may
//! have changed meanwhile.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

pub mod zds;

use crate::assembly;
use crate::enrollment::{DesiredPod, OrphanPolicy};
use crate::pods::Handed;
use admin::Pending;
use settings::{NodeAgent, Settings};
use zds::{Added, AnnouncedPods, Full, PodInfo, PodUid, Reply, Request};

/// How long judgement waits for the agent's first snapshot.
const PATIENCE: Duration = Duration::from_secs(30);

/// Requests come one at a time: each is answered before the next one.
const QUEUE: usize = 1;

/// What the agent is told about a pod that is somebody else's to serve.
const HANDED_OVER: &str = "another process of this node has taken over: tell it";

/// What is known about a pod.
#[derive(Debug, PartialEq, Eq)]
struct Announced {
    info: PodInfo,
    netns: Handed,
}

/// The node agent as the node sees it.
#[derive(Debug)]
pub(super) struct Agent {
    announced_pods: AnnouncedPods<Announced>,
    requests: mpsc::Receiver<Request>,
    task: AbortHandle,
    /// Until when judgement waits for the first snapshot.
    hold: Option<Instant>,
    /// The node is not ready before the first snapshot.
    ready: Option<Pending>,
    /// Another process serves the pods.
    retired: bool,
}

/// What is to be done about a request.
#[derive(Debug)]
pub(super) enum Task {
    /// Nothing.
    None,
    /// Enrol this pod, and answer.
    Enroll(Box<DesiredPod>, Reply),
    /// Bring all pods in line, and answer.
    Apply(Reply),
}

impl Agent {
    /// Begins to follow the node agent, if there is one.
    pub(super) fn of(agent: Option<&NodeAgent>, ready: impl FnOnce() -> Pending) -> Option<Self> {
        let agent = agent?;
        let (sender, requests) = mpsc::channel(QUEUE);
        let config = zds::Config::new(agent.socket.clone());
        Some(Self {
            announced_pods: AnnouncedPods::default(),
            requests,
            task: tokio::spawn(zds::follow(config, sender)).abort_handle(),
            hold: Some(Instant::now() + PATIENCE),
            ready: Some(ready()),
            retired: false,
        })
    }

    /// Another process serves the pods from now on. The agent goes on telling this one which pods
    /// leave, as long as their connection lasts; it is not called again, because it tells of new
    /// pods to whoever came last.
    pub(super) fn retire(&mut self) {
        self.retired = true;
        self.hold = None;
    }

    /// The agent's next request. None: the task that follows it has ended, which it never does by
    /// itself; once another process serves the pods there is simply no request any more. Safe to
    /// cancel.
    pub(super) async fn request(&mut self) -> Option<Request> {
        match self.requests.recv().await {
            None if self.retired => std::future::pending().await,
            request => request,
        }
    }

    /// Writes down what the agent says, and finds out what is to be done about it.
    pub(super) fn handle_request(&mut self, request: Request, settings: &Settings) -> Task {
        match request {
            Request::Connected if self.retired => {
                self.task.abort();
                Task::None
            }
            Request::Add { uid, reply, .. } if self.retired => {
                tracing::info!(pod = %uid, "named to a process that has handed over: refused");
                answer(reply, Err(HANDED_OVER.to_owned()));
                Task::None
            }
            Request::Connected => {
                tracing::info!("connected to the node agent");
                self.announced_pods.begin();
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
                tracing::info!(pod = %uid, "the node agent says that the pod has left");
                self.announced_pods.delete(&uid);
                Task::Apply(reply)
            }
            Request::SnapshotSent { reply } => {
                let left = self.announced_pods.complete().len();
                let pods = self.announced_pods.pods().len();
                tracing::info!(pods, left, "the node agent has named all pods");
                for uid in self.announced_pods.unknown() {
                    tracing::warn!(pod = %uid, "the node agent keeps a pod that it has not handed over: its connections are refused");
                }
                Task::Apply(reply)
            }
        }
    }

    fn add(&mut self, uid: PodUid, pod: Announced, reply: Reply, settings: &Settings) -> Task {
        let wanted = assembly::announced(settings, &uid, &pod.info, &pod.netns);
        match self.announced_pods.add(uid.clone(), pod) {
            Ok(Added::Same) => tracing::debug!(pod = %wanted.key, "named once more"),
            Ok(Added::New) => tracing::debug!(pod = %wanted.key, workload = %wanted.uid, "named"),
            Ok(Added::Replaced(_)) => {
                tracing::info!(pod = %wanted.key, workload = %wanted.uid, "the pod is another one now");
            }
            Err(full) => {
                refuse(&uid, &full, reply);
                return Task::None;
            }
        }
        Task::Enroll(Box::new(wanted), reply)
    }

    /// The pods that the agent has named.
    pub(super) fn wanted(&self, settings: &Settings) -> impl Iterator<Item = DesiredPod> {
        let pods = self.announced_pods.pods();
        pods.map(|(uid, pod)| assembly::announced(settings, uid, &pod.info, &pod.netns))
    }

    /// How many these are.
    pub(super) fn count(&self) -> usize {
        self.announced_pods.pods().len()
    }

    /// What to do with captured pods that nobody asks for: the agent may be about to.
    pub(super) fn orphan_policy(&self) -> OrphanPolicy {
        if self.announced_pods.is_whole() {
            OrphanPolicy::Detach
        } else {
            OrphanPolicy::Retain
        }
    }

    /// Until when judgement is to wait, if it is.
    pub(super) const fn hold(&self) -> Option<Instant> {
        self.hold
    }

    /// Judgement waits no longer.
    pub(super) fn release(&mut self) {
        self.hold = None;
    }

    /// Every pod is known, and served if it can be.
    pub(super) fn settled(&mut self) {
        self.hold = None;
        if let Some(ready) = self.ready.take() {
            ready.done();
        }
    }

    /// Whether the pods that this connection has named are all of them.
    pub(super) fn is_complete(&self) -> bool {
        self.announced_pods.is_complete()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A pod too many is not served: nobody accepts what its rules redirect to the proxy. The agent hears
/// it, and lets a pod that is about to start not start.
fn refuse(uid: &PodUid, full: &Full, reply: Reply) {
    tracing::error!(pod = %uid, "the pod is not served: {full}");
    answer(reply, Err(full.to_string()));
}

/// The agent may have gone meanwhile, and hears it all again on its next connection.
pub(super) fn answer(reply: Reply, answer: Result<(), String>) {
    if reply.send(answer).is_err() {
        tracing::debug!("the node agent has gone before it was answered");
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use admin::Readiness;

    const WAITING: &str = "the node agent's pods";

    /// An agent that nobody connects to: what it says, the tests say.
    fn agent(readiness: &Readiness) -> (Agent, Settings) {
        let mut settings = Settings::initial();
        settings.node_agent = Some(NodeAgent {
            socket: "/nowhere/ztunnel.sock".into(),
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
    async fn judgement_and_readiness_wait_for_the_first_snapshot_and_not_for_later_ones() {
        let readiness = Readiness::new();
        let (mut agent, settings) = agent(&readiness);
        let handle_request = |agent: &mut Agent, request| agent.handle_request(request, &settings);
        assert!(matches!(
            handle_request(&mut agent, Request::Connected),
            Task::None
        ));
        assert!(agent.hold().is_some_and(|until| until > Instant::now()));
        assert_eq!(readiness.pending(), [WAITING]);
        let sent = Request::SnapshotSent { reply: reply() };
        assert!(matches!(handle_request(&mut agent, sent), Task::Apply(_)));
        assert!(agent.is_complete());
        agent.settled();
        assert_eq!((agent.hold(), readiness.pending().len()), (None, 0));
        handle_request(&mut agent, Request::Connected);
        assert!(!agent.is_complete());
        assert_eq!((agent.hold(), readiness.pending().len()), (None, 0));
    }

    #[tokio::test]
    async fn an_agent_that_is_not_heard_of_holds_judgement_back_but_not_for_ever() {
        let readiness = Readiness::new();
        let (mut agent, _settings) = agent(&readiness);
        let until = agent.hold().unwrap();
        assert!(until <= Instant::now() + PATIENCE);
        agent.release();
        assert_eq!(agent.hold(), None);
        assert_eq!(
            readiness.pending(),
            [WAITING],
            "the node is not ready all the same"
        );
    }

    #[tokio::test]
    async fn strangers_are_let_go_when_it_is_known_that_nobody_asks_for_them() {
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
        // A pod of an earlier process is still there, and nobody knows which it is.
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
    async fn one_that_has_handed_over_hears_of_pods_that_leave_and_of_no_new_connection() {
        let readiness = Readiness::new();
        let (mut agent, settings) = agent(&readiness);
        assert!(matches!(
            agent.handle_request(Request::Connected, &settings),
            Task::None
        ));
        agent.retire();
        assert_eq!(agent.hold(), None);
        let delete = Request::Delete {
            uid: uid("pod-1"),
            reply: reply(),
        };
        assert!(matches!(
            agent.handle_request(delete, &settings),
            Task::Apply(_)
        ));
        agent.handle_request(Request::Connected, &settings);
        let ended = tokio::time::timeout(Duration::from_secs(5), agent.requests.recv());
        assert!(ended.await.unwrap().is_none(), "the agent is called again");
    }

    #[tokio::test]
    async fn no_agent_where_the_settings_name_none() {
        let none = || unreachable!("nobody waits");
        assert!(Agent::of(None, none).is_none());
    }

    #[test]
    fn a_pods_workload_is_named_as_the_control_plane_names_it() {
        let mut settings = Settings::initial();
        settings.cluster_id = "cluster1".into();
        settings.trust_domain = "example.org".into();
        let info = PodInfo {
            name: "web-0".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
        };
        let (uid, identity) = assembly::workload(&settings, &info);
        assert_eq!(&*uid.0, "cluster1//Pod/shop/web-0");
        let identity = identity.unwrap();
        assert_eq!(identity.as_str(), "spiffe://example.org/ns/shop/sa/web");
    }
}
