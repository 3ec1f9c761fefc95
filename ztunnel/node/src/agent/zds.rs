//! The node agent (istio-cni) and its socket: which pods of this node are in the mesh, and their
//! network namespaces.
//!
//! [`follow`] keeps a connection to the agent, for ever. Every packet of the agent's becomes a
//! [`Request`] for `node`, which answers it; the answer is sent to the agent before the next packet
//! is read, because an answer has no other sign of what it answers. Who is there, and who is not
//! any more when the agent has named everybody, is kept in a [`AnnouncedPods`]. While there is no agent,
//! the pods stay as they are.
//!
//! What the agent sends is checked here: lengths, the number of descriptors, that one that comes is
//! a network namespace, that names make an identity. A request that cannot be met is answered with
//! an error and nothing else happens; after a packet that is no request at all the connection is
//! made anew, as nothing is known about what follows it.

mod announced_pods;
mod error;
mod message;
mod packet;
mod session;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

pub use self::announced_pods::{Added, AnnouncedPods, Full};
pub use self::error::{Error, Refusal};
pub use self::packet::MOST_BYTES;
use self::session::{Ended, Session};
use crate::pods::Handed;

/// The uid that Kubernetes gave a pod. It is not the uid of the pod's workload in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(pub Arc<str>);

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which workload of the mesh a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInfo {
    /// The pod's name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its service account.
    pub service_account: Arc<str>,
}

/// Takes the answer to a request: an error is told to the agent, which does not repeat the request.
pub type Reply = oneshot::Sender<Result<(), String>>;

/// What the node agent says.
#[derive(Debug)]
pub enum Request {
    /// A connection began: only those pods count as named that it names.
    Connected,
    /// A pod is in the mesh.
    Add {
        /// Which one.
        uid: PodUid,
        /// Which workload it is.
        info: PodInfo,
        /// Its network namespace.
        netns: Handed,
        /// Takes the answer.
        reply: Reply,
    },
    /// A pod is still there, as it was.
    Keep {
        /// Which one.
        uid: PodUid,
        /// Takes the answer.
        reply: Reply,
    },
    /// A pod has left.
    Delete {
        /// Which one.
        uid: PodUid,
        /// Takes the answer.
        reply: Reply,
    },
    /// Every pod that there is has been named. Comes once on a connection.
    SnapshotSent {
        /// Takes the answer.
        reply: Reply,
    },
}

/// How the node agent is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its socket.
    pub socket: PathBuf,
    /// First pause between two connections; doubles up to [`Self::retry_max`]. The agent takes on
    /// five a second.
    pub retry_min: Duration,
    /// Longest pause.
    pub retry_max: Duration,
}

impl Config {
    /// With the pauses that suit a node.
    #[must_use]
    pub const fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(5),
        }
    }
}

/// Follows the node agent until nobody takes its requests any more.
pub async fn follow(config: Config, requests: mpsc::Sender<Request>) {
    let mut pause = config.retry_min;
    loop {
        let ended = tokio::select! {
            ended = converse(&config, &requests) => ended,
            () = requests.closed() => return,
        };
        if ended.complete {
            pause = config.retry_min;
        }
        let error = &ended.error;
        tracing::warn!(reason = error.reason(), ?pause, "{error}; trying again");
        // The proxies of a whole cluster must not come back in step.
        let wait = pause.mul_f64(rand::random_range(0.5..1.0));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = requests.closed() => return,
        }
        pause = pause.saturating_mul(2).min(config.retry_max);
    }
}

async fn converse(config: &Config, requests: &mpsc::Sender<Request>) -> Ended {
    match Session::connect(&config.socket) {
        Ok(session) => session.run(requests).await,
        Err(error) => error.into(),
    }
}

#[cfg(test)]
mod tests;
