//! Passthrough, for connections without a tunnel that the kernel does not carry yet: the proxy
//! connects to the original destination from the pod's own namespace and address.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use tokio::net::TcpStream;

use super::worker::PodContext;
use crate::pods::Source;
use mesh::NetnsCookie;

/// Connects to the application's destination: outside the mesh, or a pod of this node that has
/// authorized the connection.
///
/// # Errors
/// As `connect(2)`.
pub(super) async fn connect(
    context: &PodContext,
    dialled: SocketAddr,
    to: SocketAddr,
    server: Option<NetnsCookie>,
) -> std::io::Result<TcpStream> {
    let shared = &context.worker.proxy;
    let source = Source::Pod {
        mark: shared.config.mark,
    };
    let mark_fast_path_socket = |socket: &socket2::Socket| match &shared.kernel {
        Some(kernel) => kernel.mark_fast_path_socket(socket.as_fd(), dialled, to, server),
        None => Ok(()),
    };
    let dial = &shared.config.dial;
    let connected = dial
        .connect_after(&context.pod.netns, to, source, mark_fast_path_socket)
        .await;
    if let (Err(_), Some(server)) = (&connected, server) {
        shared.recheck.name(server);
    }
    connected
}
