//! Setting up the join of two sockets of one connection: the program that moves their bytes, and
//! the map that it hangs on.

use ztunnel_ebpf_types::{End, Join};

use super::Error;
use super::object::Object;
use super::programs::PAST;
use super::sys::{self, Map};

/// The maps of joined connections, with their program at work.
#[derive(Debug)]
pub(super) struct Joints {
    /// The value is the socket's descriptor.
    pub(super) joined: Map<End, u32>,
    /// The key is the socket's descriptor.
    pub(super) joins: Map<u32, Join>,
}

/// Hangs the program on the map, or puts it in the place of the one that hangs there.
pub(super) fn attach(object: &mut Object) -> Result<Joints, Error> {
    let joined = Map::new(object.map("JOINED")?, "JOINED");
    let joins = Map::new(object.map("JOINS")?, "JOINS");
    let (name, attach) = PAST;
    let attached = sys::attach_to_map(object.program(name)?, joined.descriptor(), attach);
    attached.map_err(|source| Error::Attach {
        program: name,
        target: "the map JOINED".to_owned(),
        source,
    })?;
    Ok(Joints { joined, joins })
}
