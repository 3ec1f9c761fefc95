//! The interface between the DNS server and its pod and worker.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::net::{TcpStream, UdpSocket};

use super::pod_context::PodContext;
use super::wait::WaitError;
use crate::bpf::{self, Kernel};
use crate::dns::{Server, ServerContext};
use crate::pods::{self, Dial};
use mesh::{Snapshot, Workload};
use telemetry::{DnsRefusal, WaitKind};

/// A pod as its DNS server sees it.
pub(super) struct Names(Rc<PodContext>);

/// The pod's DNS server on this worker, where DNS is captured.
pub(super) fn server(context: &Rc<PodContext>) -> Option<Rc<Server<Names>>> {
    let config = context.proxy.config.dns.clone()?;
    let telemetry = context.proxy.telemetry.clone();
    let names = Names(context.clone());
    let common = context.worker.names.clone();
    Some(Server::new(names, config, telemetry, common))
}

impl Names {
    /// The original destination of a query, as the kernel programs recorded it.
    fn recorded(
        &self,
        lookup: impl FnOnce(&Kernel) -> Result<Option<SocketAddr>, bpf::Error>,
    ) -> Option<SocketAddr> {
        let kernel = self.0.proxy.kernel.as_ref()?;
        lookup(kernel).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot look up the resolver of a DNS query");
            None
        })
    }

    /// The resolver for a query that a rule inside the pod redirected past the kernel programs: the
    /// rule does not keep the original destination. For captured queries the kernel programs know
    /// it.
    fn fallback(&self) -> Option<SocketAddr> {
        if !self.0.pod.redirected.load(Ordering::Relaxed) {
            // Rules may have appeared since the last check.
            self.0.proxy.recheck.add(self.0.cookie());
            return None;
        }
        self.0.proxy.config.dns.as_ref()?.resolver
    }
}

impl ServerContext for Names {
    fn mesh(&self) -> Arc<Snapshot> {
        self.0.proxy.fast_path.view().mesh.clone()
    }

    fn client(&self, mesh: &Snapshot) -> Option<Arc<Workload>> {
        self.0.client(mesh)
    }

    fn kubernetes_namespace(&self) -> Option<&str> {
        // A view that contains the pod belongs to a known mesh; an empty view has no names.
        let view = self.0.proxy.fast_path.view();
        view.pod(self.0.cookie())?;
        self.0.pod.uid.pod_namespace()
    }

    async fn wait_for_workload(&self) -> Result<(), DnsRefusal> {
        let deadline = self.0.proxy.waits.deadline(WaitKind::Dns, Instant::now());
        // The disappearance of a datagram's client cannot be observed.
        let waited = self.0.wait_for_client(deadline, pending());
        let Err(error) = waited.await else {
            return Ok(());
        };
        let reason = error.reason();
        // The waiting places bound the rate of waits that expire, so each may write a log line.
        let has_waited = matches!(&error, WaitError::Expired { waited, .. } if !waited.is_zero());
        if has_waited {
            tracing::warn!(reason, "a DNS query is refused: {error}");
        } else {
            tracing::debug!(reason, "a DNS query is refused: {error}");
        }
        Err(match error {
            WaitError::TooMany { .. } => DnsRefusal::TooMany,
            _ => DnsRefusal::UnknownWorkload,
        })
    }

    fn netns_cookie(&self) -> u64 {
        self.0.pod.netns.cookie()
    }

    fn resolver_of_datagram(&self, client: SocketAddr) -> Option<SocketAddr> {
        let recorded = self.recorded(|kernel| kernel.resolver_of(self.0.cookie(), client));
        recorded.or_else(|| self.fallback())
    }

    fn resolver_of_stream(&self, stream: &TcpStream, client: SocketAddr) -> Option<SocketAddr> {
        // Captured: the application dialled the socket's own address.
        let dialled = pods::local_of(stream).ok();
        if let Some(resolver) = dialled.filter(|dialled| !dialled.ip().is_loopback()) {
            return Some(resolver);
        }
        let recorded = self.recorded(|kernel| {
            let origin = kernel.original_destination(self.0.cookie(), client)?;
            Ok(origin.map(|origin| origin.destination))
        });
        // For a connection that a rule redirected, the kernel knows the original destination.
        recorded
            .or_else(|| pods::redirected_from(stream).ok().flatten())
            .or_else(|| self.fallback())
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.spawn(task);
    }

    fn leave_reuseport_group(&self, socket: &UdpSocket) -> io::Result<()> {
        pods::leave_reuseport_group(socket)
    }

    fn resolver_socket(&self, resolver: SocketAddr) -> io::Result<UdpSocket> {
        let mark = self.0.proxy.config.mark;
        Dial::connect_udp(&self.0.pod.netns, resolver, mark)
    }

    async fn connect_to_resolver(&self, resolver: SocketAddr) -> io::Result<TcpStream> {
        let config = &self.0.proxy.config;
        let netns = &self.0.pod.netns;
        config.dial.connect(netns, resolver, config.mark).await
    }

    async fn send_reply(
        &self,
        socket: &UdpSocket,
        reply: &[u8],
        client: SocketAddr,
    ) -> io::Result<()> {
        match bpf::reply_source(client) {
            Some(source) => pods::send_from(socket, source, client, reply).await,
            None => socket.send_to(reply, client).await.map(drop),
        }
    }

    fn random(&self) -> u64 {
        self.0.worker.random()
    }
}
