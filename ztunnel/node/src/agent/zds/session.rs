//! One connection to the node agent, from the hello message to its end.

use std::path::Path;

use prost::Message as _;
use tokio::sync::{mpsc, oneshot};

use super::message::Message;
use super::packet::Packets;
use super::{Error, Reply, Request};
use api::istio::workload::zds::{Ack, Version, WorkloadResponse, ZdsHello, workload_response};

/// The longest error text: the agent reads answers into a buffer of 1024 bytes.
const MAX_ERROR: usize = 900;

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    packets: Packets,
    /// The agent's snapshot is complete.
    complete: bool,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) error: Error,
    /// The agent's snapshot was complete: both sides speak the same protocol.
    pub(super) complete: bool,
}

impl From<Error> for Ended {
    /// The end of a connection attempt.
    fn from(error: Error) -> Self {
        Self {
            error,
            complete: false,
        }
    }
}

impl Session {
    pub(super) fn connect(socket: &Path) -> Result<Self, Error> {
        let packets = Packets::connect(socket).map_err(|source| Error::Connect {
            socket: socket.to_owned(),
            source,
        })?;
        Ok(Self {
            packets,
            complete: false,
        })
    }

    /// Forwards the agent's requests until the connection ends.
    pub(super) async fn run(mut self, requests: &mpsc::Sender<Request>) -> Ended {
        let Err(error) = self.forward_requests(requests).await;
        Ended {
            error,
            complete: self.complete,
        }
    }

    async fn forward_requests(
        &mut self,
        requests: &mpsc::Sender<Request>,
    ) -> Result<std::convert::Infallible, Error> {
        forward(requests, Request::Connected).await?;
        let hello = ZdsHello {
            version: Version::V1.into(),
        };
        self.send(&hello.encode_to_vec()).await?;
        loop {
            let packet = self.packets.receive().await;
            let packet = packet.map_err(|source| Error::Receive { source })?;
            let message = Message::read(packet.ok_or(Error::Closed)?);
            match message.and_then(|message| self.check_order(message)) {
                Ok(message) => {
                    let answer = handle(message, requests).await?;
                    self.acknowledge(answer.err().unwrap_or_default()).await?;
                }
                Err(error) => {
                    // The agent logs the error. The connection ends all the same.
                    self.acknowledge(error.to_string()).await?;
                    return Err(error);
                }
            }
        }
    }

    /// The snapshot ends once, and pods are kept only before its end.
    fn check_order(&mut self, message: Message) -> Result<Message, Error> {
        match message {
            Message::Keep(_) | Message::SnapshotSent if self.complete => Err(Error::Order {
                request: message.name(),
            }),
            Message::SnapshotSent => {
                self.complete = true;
                Ok(message)
            }
            _ => Ok(message),
        }
    }

    async fn acknowledge(&self, mut error: String) -> Result<(), Error> {
        error.truncate(error.floor_char_boundary(MAX_ERROR));
        let response = WorkloadResponse {
            payload: Some(workload_response::Payload::Ack(Ack { error })),
        };
        self.send(&response.encode_to_vec()).await
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        let sent = self.packets.send(bytes).await;
        sent.map_err(|source| Error::Send { source })
    }
}

/// Has the node handle a message; returns the answer for the agent.
async fn handle(
    message: Message,
    requests: &mpsc::Sender<Request>,
) -> Result<Result<(), String>, Error> {
    match message {
        Message::Add(uid, pod) => match *pod {
            Ok((info, netns)) => {
                let request = |reply| Request::Add {
                    uid,
                    info,
                    netns,
                    reply,
                };
                request_answer(requests, request).await
            }
            Err(refusal) => {
                // The pod exists: if it were dropped at the end of the snapshot, it would no longer be
                // captured and would bypass the mesh.
                let kept = request_answer(requests, |reply| Request::Keep { uid, reply }).await?;
                Ok(kept.and_then(|()| Err(refusal.to_string())))
            }
        },
        Message::Keep(uid) => request_answer(requests, |reply| Request::Keep { uid, reply }).await,
        Message::Delete(uid) => {
            request_answer(requests, |reply| Request::Delete { uid, reply }).await
        }
        Message::SnapshotSent => {
            request_answer(requests, |reply| Request::SnapshotSent { reply }).await
        }
    }
}

async fn request_answer(
    requests: &mpsc::Sender<Request>,
    request: impl FnOnce(Reply) -> Request,
) -> Result<Result<(), String>, Error> {
    let (reply, answer) = oneshot::channel();
    forward(requests, request(reply)).await?;
    answer.await.map_err(|_dropped| Error::Stopping)
}

async fn forward(requests: &mpsc::Sender<Request>, request: Request) -> Result<(), Error> {
    let sent = requests.send(request).await;
    sent.map_err(|_closed| Error::Stopping)
}
