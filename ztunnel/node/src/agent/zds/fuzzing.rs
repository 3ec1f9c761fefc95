//! The door for the fuzz targets: packets of the node agent.

use std::os::fd::OwnedFd;

use super::message::Message;
use super::packet::Packet;
use super::{Error, PodInfo, PodUid, Refusal};

/// What a packet says.
#[derive(Debug)]
pub enum Said {
    /// A pod is there, or why it cannot be taken on.
    Add(PodUid, Result<PodInfo, Refusal>),
    /// A pod is still there.
    Keep(PodUid),
    /// A pod has left.
    Delete(PodUid),
    /// Everybody was named.
    SnapshotSent,
}

/// Reads a packet that came whole, with the descriptor that rode on it.
///
/// # Errors
/// When it is no request.
pub fn read(bytes: Vec<u8>, descriptor: Option<OwnedFd>) -> Result<Said, Error> {
    let packet = Packet {
        bytes,
        descriptor,
        too_long: false,
        too_many: false,
    };
    Ok(match Message::read(packet)? {
        Message::Add(uid, what) => Said::Add(uid, what.map(|(info, _handed)| info)),
        Message::Keep(uid) => Said::Keep(uid),
        Message::Delete(uid) => Said::Delete(uid),
        Message::SnapshotSent => Said::SnapshotSent,
    })
}
