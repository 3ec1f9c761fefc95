//! The lane without a tunnel: what the mesh does not carry goes on as it came, from the pod's
//! own namespace and with the pod's own address.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::worker::Here;
use crate::pods::Source;

/// Connects to where the application wanted to go.
///
/// # Errors
/// As `connect(2)`.
pub(super) async fn connect(here: &Here, to: SocketAddr) -> std::io::Result<TcpStream> {
    let config = &here.local.shared.config;
    config
        .dial
        .connect(&here.pod.netns, to, Source::Pod { mark: config.mark })
        .await
}
