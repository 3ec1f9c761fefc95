//! Changes of links, routes and rules in the network namespace of the calling thread.

use std::io;

use netlink_packet_core::{
    ErrorBuffer, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NLMSG_ERROR,
    NetlinkBuffer, NetlinkMessage,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_ROUTE};

/// Whether an object was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// It was.
    Before,
    /// It was missing.
    Now,
}

/// What happens to an object that exists already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It stays.
    Keep,
    /// A route is replaced if it differs.
    Replace,
}

/// A route socket that sends one request at a time and reads its answer.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddress::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends one request. The answer that the object exists already is a success.
    pub(super) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        existing: Existing,
    ) -> io::Result<Prepared> {
        self.sequence += 1;
        let mut packet = NetlinkMessage::from(message);
        packet.header.sequence_number = self.sequence;
        packet.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
        packet.header.flags |= match existing {
            Existing::Keep => NLM_F_EXCL,
            Existing::Replace => NLM_F_REPLACE,
        };
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let (answer, _kernel) = self.socket.recv_from_full()?;
        check_answer(&answer)
    }
}

/// Checks the kernel's answer. Only the error code is needed, so the rest of the message is not parsed.
fn check_answer(answer: &[u8]) -> io::Result<Prepared> {
    let message = NetlinkBuffer::new_checked(answer).map_err(io::Error::other)?;
    if message.message_type() != NLMSG_ERROR {
        return Ok(Prepared::Now);
    }
    let body = ErrorBuffer::new_checked(message.payload()).map_err(io::Error::other)?;
    match body
        .code()
        .map(|code| io::Error::from_raw_os_error(-code.get()))
    {
        Some(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Prepared::Before),
        Some(error) => Err(error),
        None => Ok(Prepared::Now),
    }
}

/// Sets the loopback device of the calling thread's network namespace up; in a new namespace it is
/// down.
pub(super) fn set_loopback_up() -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = nix::net::if_::if_nametoindex("lo")?;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Netlink::open()?
        .request(RouteNetlinkMessage::SetLink(message), Existing::Keep)
        .map(drop)
}
