//! Attaches the program that moves bytes between the two sockets of a joined connection.

use ztunnel_ebpf_types::{ConnectionEnd, JoinState};

use super::Error;
use super::object::Object;
use super::programs::REDIRECT;
use super::sys::{self, Map};

/// The maps of joined connections, with the program attached.
#[derive(Debug)]
pub(super) struct JoinMaps {
    /// The value is the socket's descriptor.
    pub(super) sockets: Map<ConnectionEnd, u32>,
    /// The key is the socket's descriptor.
    pub(super) states: Map<u32, JoinState>,
}

/// Attaches the program to the map, replacing the one that is attached.
pub(super) fn attach(object: &mut Object) -> Result<JoinMaps, Error> {
    let sockets = Map::new(object.map("JOINED_SOCKETS")?, "JOINED_SOCKETS");
    let states = Map::new(object.map("JOIN_STATES")?, "JOIN_STATES");
    let (name, attach) = REDIRECT;
    let attached = sys::attach_to_map(object.program(name)?, sockets.descriptor(), attach);
    attached.map_err(|source| Error::Attach {
        program: name,
        target: "the map JOINED_SOCKETS".to_owned(),
        source,
    })?;
    Ok(JoinMaps { sockets, states })
}
