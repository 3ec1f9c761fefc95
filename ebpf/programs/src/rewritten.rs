//! Connections that the version before has captured: its connect hook replaced the destination by the
//! proxy's listener on the loopback device. Such a socket may send its SYN when this version's programs
//! have replaced the others: the proxy needs its original destination then.
//!
//! To be removed when no such version is in use.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::programs::SockOpsContext;
use ztunnel_ebpf_types::{
    ClientKey, Config, Cookie, OriginalDestination, SOCKET_CAPTURED, SocketState,
};

use crate::context::Ends;
use crate::maps::{ORIGINAL_DESTINATIONS, PROXY_DNS_PORT};

/// Whether the connection of a socket leads to the proxy's listeners on the loopback device.
#[inline(always)]
pub fn is_to_proxy(config: &Config, socket: &SocketState, ends: &Ends, port: u32) -> bool {
    socket.kind == SOCKET_CAPTURED
        && ends.remote.is_loopback()
        && (port == config.outbound_port || port == PROXY_DNS_PORT.load())
}

/// Records the original destination of a socket for the proxy.
#[inline(always)]
pub fn record(ctx: &SockOpsContext, cookie: Cookie, ends: &Ends, socket: &SocketState) {
    let client = ClientKey {
        cookie,
        address: ends.local,
        port: ctx.local_port(),
        zero: 0,
    };
    let destination = OriginalDestination {
        address: socket.dialled_address,
        port: socket.dialled_port,
        flags: socket.flags,
    };
    // If it fails, the proxy finds nothing at accept and closes the connection.
    let _ = ORIGINAL_DESTINATIONS.insert(&client, &destination, u64::from(BPF_ANY));
}
