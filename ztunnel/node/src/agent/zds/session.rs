//! One connection to the node agent, from the hello to its end.

use std::path::Path;

use prost::Message as _;
use tokio::sync::{mpsc, oneshot};

use super::message::Message;
use super::packet::Packets;
use super::{Error, Reply, Request};
use api::istio::workload::zds::{Ack, Version, WorkloadResponse, ZdsHello, workload_response};

/// The agent reads answers into a buffer of 1024 bytes.
const MOST_ERROR: usize = 900;

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    packets: Packets,
    /// Everybody has been named.
    complete: bool,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) error: Error,
    /// Everybody had been named: the two understand each other.
    pub(super) complete: bool,
}

impl From<Error> for Ended {
    /// Before it began.
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

    /// Passes on what the agent says, until something ends the connection.
    pub(super) async fn run(mut self, requests: &mpsc::Sender<Request>) -> Ended {
        let Err(error) = self.converse(requests).await;
        Ended {
            error,
            complete: self.complete,
        }
    }

    async fn converse(
        &mut self,
        requests: &mpsc::Sender<Request>,
    ) -> Result<std::convert::Infallible, Error> {
        pass_on(requests, Request::Connected).await?;
        let hello = ZdsHello {
            version: Version::V1.into(),
        };
        self.send(&hello.encode_to_vec()).await?;
        loop {
            let packet = self.packets.receive().await;
            let packet = packet.map_err(|source| Error::Receive { source })?;
            let message = Message::read(packet.ok_or(Error::Closed)?);
            match message.and_then(|message| self.in_order(message)) {
                Ok(message) => {
                    let answer = obey(message, requests).await?;
                    self.acknowledge(answer.err().unwrap_or_default()).await?;
                }
                Err(error) => {
                    // The agent's log should say why. What it answers, it will not be told.
                    self.acknowledge(error.to_string()).await?;
                    return Err(error);
                }
            }
        }
    }

    /// The snapshot ends once, and what it names comes before.
    fn in_order(&mut self, message: Message) -> Result<Message, Error> {
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
        error.truncate(error.floor_char_boundary(MOST_ERROR));
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

/// Has a message obeyed; returns what the agent is to be told.
async fn obey(
    message: Message,
    requests: &mpsc::Sender<Request>,
) -> Result<Result<(), String>, Error> {
    match message {
        Message::Add(uid, what) => match *what {
            Ok((info, netns)) => {
                let request = |reply| Request::Add {
                    uid,
                    info,
                    netns,
                    reply,
                };
                ask(requests, request).await
            }
            Err(refusal) => {
                // It is there all the same: what is known about it must not be forgotten when the
                // snapshot ends, for then the pod would be let out of capture.
                let kept = ask(requests, |reply| Request::Keep { uid, reply }).await?;
                Ok(kept.and_then(|()| Err(refusal.to_string())))
            }
        },
        Message::Keep(uid) => ask(requests, |reply| Request::Keep { uid, reply }).await,
        Message::Delete(uid) => ask(requests, |reply| Request::Delete { uid, reply }).await,
        Message::SnapshotSent => ask(requests, |reply| Request::SnapshotSent { reply }).await,
    }
}

async fn ask(
    requests: &mpsc::Sender<Request>,
    request: impl FnOnce(Reply) -> Request,
) -> Result<Result<(), String>, Error> {
    let (reply, answer) = oneshot::channel();
    pass_on(requests, request(reply)).await?;
    answer.await.map_err(|_dropped| Error::Stopping)
}

async fn pass_on(requests: &mpsc::Sender<Request>, request: Request) -> Result<(), Error> {
    let sent = requests.send(request).await;
    sent.map_err(|_nobody| Error::Stopping)
}
