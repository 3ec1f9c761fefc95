//! The client of the node agent (istio-cni): the agent announces the pods of this node that are in
//! the mesh, with their network namespaces.
//!
//! [`follow`] keeps a connection to the agent's socket. Every packet becomes a [`Request`], which
//! the node answers. The answer is sent before the next packet is read: answers carry no reference
//! to their request. [`AnnouncedPods`] keeps the announced pods; a pod that a new snapshot does not
//! contain is removed. While there is no connection, the pods stay as they are.
//!
//! This module validates the packets: lengths, the number of descriptors, that a descriptor is a
//! network namespace, that names are valid parts of an identity. An invalid request is answered
//! with an error. After a packet that cannot be decoded the client reconnects.

mod announced_pods;
mod error;
mod message;
mod packet;
mod pod;
mod session;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

pub use self::announced_pods::{Added, AnnouncedPods, Full};
pub use self::error::{Error, Refusal};
pub use self::message::Message;
pub use self::packet::MAX_BYTES;
pub use self::pod::{PodInfo, PodUid};
use self::session::{Ended, Session};
use crate::pods::NetnsDescriptor;

/// Takes the answer to a request. An error is sent to the agent, which does not repeat the request.
pub type Reply = oneshot::Sender<Result<(), String>>;

/// A request of the node agent.
#[derive(Debug)]
pub enum Request {
    /// A new connection: the agent announces its pods again.
    Connected,
    /// A pod is in the mesh.
    Add {
        /// The pod.
        uid: PodUid,
        /// Its workload.
        info: PodInfo,
        /// Its network namespace.
        netns: NetnsDescriptor,
        /// Takes the answer.
        reply: Reply,
    },
    /// A pod is still in the mesh, unchanged.
    Keep {
        /// The pod.
        uid: PodUid,
        /// Takes the answer.
        reply: Reply,
    },
    /// A pod has left.
    Delete {
        /// The pod.
        uid: PodUid,
        /// Takes the answer.
        reply: Reply,
    },
    /// Every pod of the node has been announced. Arrives once on a connection.
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
    /// The first pause between two connections; doubles up to [`Self::retry_max`]. The agent
    /// accepts five connections a second.
    pub retry_min: Duration,
    /// The longest pause.
    pub retry_max: Duration,
}

impl Config {
    /// The default pauses.
    #[must_use]
    pub const fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(5),
        }
    }
}

/// Keeps a connection to the node agent until the receiver of its requests is dropped.
pub async fn follow(config: Config, requests: mpsc::Sender<Request>) {
    let mut pause = config.retry_min;
    loop {
        let ended = tokio::select! {
            ended = run_session(&config, &requests) => ended,
            () = requests.closed() => return,
        };
        if ended.complete {
            pause = config.retry_min;
        }
        let error = &ended.error;
        tracing::warn!(reason = error.reason(), ?pause, "{error}; reconnecting");
        // Jitter: the proxies of a cluster must not reconnect at the same time.
        let wait = pause.mul_f64(rand::random_range(0.5..1.0));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = requests.closed() => return,
        }
        pause = pause.saturating_mul(2).min(config.retry_max);
    }
}

async fn run_session(config: &Config, requests: &mpsc::Sender<Request>) -> Ended {
    match Session::connect(&config.socket) {
        Ok(session) => session.run(requests).await,
        Err(error) => error.into(),
    }
}

#[cfg(test)]
mod tests;
