//! The sockets of a proxy. Tests use them to prove that the proxy does not carry a connection.

use std::collections::HashSet;
use std::io;

use anyhow::{Context as _, Result};

use super::Proxy;
use crate::net::{Host, TcpSocket, TcpState};
use crate::process;

impl Proxy<'_> {
    /// The proxy's connected TCP sockets in a host's namespace.
    ///
    /// # Errors
    /// When the proxy is not running.
    pub fn connections_in(&self, host: &Host) -> Result<Vec<TcpSocket>> {
        let inodes = self.socket_inodes().context("reading the proxy's files")?;
        let sockets = host.tcp_sockets().context("reading a host's sockets")?;
        Ok(sockets
            .into_iter()
            .filter(|socket| socket.state != TcpState::Listening)
            .filter(|socket| inodes.contains(&socket.inode))
            .collect())
    }

    /// Whether the proxy has a socket in a host's namespace whose remote end has this port.
    ///
    /// # Errors
    /// When the proxy is not running.
    pub fn has_connection_to(&self, host: &Host, port: u16) -> Result<bool> {
        let mut connections = self.connections_in(host)?.into_iter();
        Ok(connections.any(|socket| socket.remote.port() == port))
    }

    /// Whether the proxy listens on a port in a host's namespace.
    ///
    /// # Errors
    /// When the proxy is not running.
    pub fn listens_in(&self, host: &Host, port: u16) -> Result<bool> {
        let inodes = self.socket_inodes().context("reading the proxy's files")?;
        let sockets = host.tcp_sockets().context("reading a host's sockets")?;
        Ok(sockets
            .iter()
            .filter(|socket| socket.state == TcpState::Listening && socket.local.port() == port)
            .any(|socket| inodes.contains(&socket.inode)))
    }

    fn socket_inodes(&self) -> io::Result<HashSet<u64>> {
        let pid = self.pid().map_err(io::Error::other)?;
        process::socket_inodes(pid)
    }
}
