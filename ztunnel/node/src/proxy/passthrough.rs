//! Passthrough, for connections without a tunnel that the kernel does not carry yet: the proxy
//! connects to the original destination from the pod's own namespace and address.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use tokio::net::TcpStream;

use super::connection::Connection;
use super::pod_context::PodContext;
use mesh::NetnsCookie;

/// Connects to the application's destination: outside the mesh, or a pod of this node that has
/// authorized the connection.
///
/// # Errors
/// As `connect(2)`.
pub(super) async fn connect(
    context: &PodContext,
    connection: &Connection,
    to: SocketAddr,
    server: Option<NetnsCookie>,
) -> std::io::Result<TcpStream> {
    let proxy = &context.proxy;
    let mark_fast_path_socket = |socket: &socket2::Socket| match &proxy.kernel {
        Some(kernel) => {
            kernel.mark_fast_path_socket(socket.as_fd(), connection.destination, to, server)
        }
        None => Ok(()),
    };
    let dial = &proxy.config.dial;
    let connected = dial
        .connect_after(
            &context.pod.netns,
            to,
            proxy.config.mark,
            mark_fast_path_socket,
        )
        .await;
    if let (Err(_), Some(server)) = (&connected, server) {
        proxy.recheck.add(server);
    }
    connected
}
