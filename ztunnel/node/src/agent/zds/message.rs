//! Decodes and validates the requests of the node agent.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use prost::Message as _;

use super::packet::Packet;
use super::{Error, PodInfo, PodUid, Refusal};
use crate::pods::NetnsDescriptor;
use api::istio::workload::zds::workload_request::Payload;
use api::istio::workload::zds::{AddWorkload, WorkloadInfo, WorkloadRequest};

/// The longest uid of a pod. Kubernetes uses 36 bytes, and 32 for static pods.
const MAX_UID: usize = 256;

/// The longest name in Kubernetes.
const MAX_NAME: usize = 253;

/// A request of the node agent.
#[derive(Debug)]
pub enum Message {
    /// A pod is in the mesh: its workload and network namespace, or why it cannot be enrolled.
    Add(PodUid, Box<Result<(PodInfo, NetnsDescriptor), Refusal>>),
    /// A pod is still in the mesh, unchanged.
    Keep(PodUid),
    /// A pod has left.
    Delete(PodUid),
    /// The agent has named every pod of the node.
    SnapshotSent,
}

impl Message {
    /// Decodes a received packet.
    pub(super) fn read(packet: Packet) -> Result<Self, Error> {
        if packet.too_long {
            return Err(Error::TooLong);
        }
        if packet.too_many {
            return Err(Error::Descriptors);
        }
        Self::decode(&packet.bytes, packet.descriptor)
    }

    /// Decodes the bytes of a whole packet, with the descriptor that was sent along.
    ///
    /// # Errors
    /// The bytes are not a request, or the descriptor does not belong to this kind of request.
    pub fn decode(bytes: &[u8], descriptor: Option<OwnedFd>) -> Result<Self, Error> {
        let request =
            WorkloadRequest::decode(bytes).map_err(|source| Error::Undecodable { source })?;
        let payload = request.payload.ok_or(Error::Unknown)?;
        let message = match payload {
            Payload::Add(add) => return read_add(add, descriptor),
            Payload::Keep(keep) => Self::Keep(uid(&keep.uid)?),
            Payload::Del(del) => Self::Delete(uid(&del.uid)?),
            Payload::SnapshotSent(_) => Self::SnapshotSent,
        };
        match descriptor {
            Some(_closed) => Err(Error::UnexpectedDescriptor {
                request: message.name(),
            }),
            None => Ok(message),
        }
    }

    /// The name of this kind of request.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Add(..) => "add",
            Self::Keep(_) => "keep",
            Self::Delete(_) => "del",
            Self::SnapshotSent => "snapshot_sent",
        }
    }
}

fn uid(text: &str) -> Result<PodUid, Error> {
    if text.is_empty() || text.len() > MAX_UID {
        return Err(Error::Uid {
            length: text.len(),
            most: MAX_UID,
        });
    }
    Ok(PodUid(text.into()))
}

fn read_add(add: AddWorkload, descriptor: Option<OwnedFd>) -> Result<Message, Error> {
    let uid = uid(&add.uid)?;
    let pod = pod_info(&uid, add.workload_info).and_then(|info| {
        let descriptor = descriptor.ok_or_else(|| Refusal::NoDescriptor { uid: uid.clone() })?;
        Ok((info, NetnsDescriptor::check(&uid.0, descriptor)?))
    });
    Ok(Message::Add(uid, Box::new(pod)))
}

fn pod_info(uid: &PodUid, info: Option<WorkloadInfo>) -> Result<PodInfo, Refusal> {
    let info = info.ok_or_else(|| Refusal::NoInfo { uid: uid.clone() })?;
    let name = |field, text: String| {
        let valid_length = !text.is_empty() && text.len() <= MAX_NAME;
        // A slash would make the name a part of another identity or uid. Kubernetes allows even less.
        if valid_length && text.chars().all(|c| c.is_ascii_graphic() && c != '/') {
            return Ok(Arc::from(text));
        }
        Err(Refusal::Name {
            uid: uid.clone(),
            field,
            found: text.chars().take(MAX_NAME).collect(),
        })
    };
    // The default of Kubernetes for a pod without a service account.
    let account = if info.service_account.is_empty() {
        "default".to_owned()
    } else {
        info.service_account
    };
    Ok(PodInfo {
        name: name("name", info.name)?,
        namespace: name("namespace", info.namespace)?,
        service_account: name("service_account", account)?,
    })
}
