//! Passthrough, for connections without a tunnel that the kernel does not carry yet: the proxy
//! connects to the original destination from the pod's own namespace and address, with the source, the
//! mark and the device that the application has chosen.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;

use tokio::net::TcpStream;

use super::connection::Connection;
use super::pod_context::PodContext;
use crate::pods::{self, is_privileged, routing};
use mesh::NetnsCookie;

/// Binds a socket to a device of the namespace that the thread is in.
fn bind_device(socket: &socket2::Socket, index: u32) -> std::io::Result<()> {
    let name = nix::net::if_::if_indextoname(index)?;
    socket.bind_device(Some(name.to_bytes()))
}

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
    let application = &connection.application;
    let prepare = |socket: &socket2::Socket| {
        let Some(kernel) = &proxy.kernel else {
            return Ok(());
        };
        kernel.mark_fast_path_socket(socket.as_fd(), connection.destination, to, server)?;
        // Other rules inside the pod would bring a socket with another mark to the proxy again.
        let is_free = !context.pod.redirected.load(Ordering::Relaxed)
            && !routing::is_delivery_mark(application.mark);
        if application.mark != 0 && is_free {
            socket.set_mark(application.mark)?;
        }
        if application.device != 0 {
            bind_device(socket, application.device)?;
        }
        let client = connection.client;
        let source = application
            .source
            .or_else(|| is_privileged(client.port()).then(|| client.ip()));
        match source {
            Some(source) if !source.is_loopback() && source.is_ipv4() == to.is_ipv4() => {
                pods::bind_source(socket, source, client.port())
            }
            _ => Ok(()),
        }
    };
    let dial = &proxy.config.dial;
    let connected = dial
        .connect_after(&context.pod.netns, to, proxy.config.mark, prepare)
        .await;
    if let (Err(_), Some(server)) = (&connected, server) {
        proxy.recheck.add(server);
    }
    connected
}
