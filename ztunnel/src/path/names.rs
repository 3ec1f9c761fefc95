//! What the DNS proxy asks of a pod and its worker.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::{TcpStream, UdpSocket};

use super::worker::Here;
use crate::dns::{Server, Surroundings};
use crate::kernel::{self, NetnsCookie};
use crate::mesh::{Snapshot, Workload};
use crate::pods::{self, Dial, Source};

/// A pod as its DNS server sees it.
pub(super) struct Names(Rc<Here>);

/// The pod's DNS server on this worker, where DNS is captured.
pub(super) fn server(here: &Rc<Here>) -> Option<Rc<Server<Names>>> {
    let local = &here.local;
    let config = local.shared.config.dns.clone()?;
    let telemetry = local.shared.telemetry.clone();
    let names = Names(here.clone());
    Some(Server::new(names, config, telemetry, local.names.clone()))
}

impl Names {
    fn cookie(&self) -> NetnsCookie {
        NetnsCookie(self.0.pod.netns.cookie())
    }

    /// Who is asked where rules capture the pod.
    fn fallback(&self) -> Option<SocketAddr> {
        self.0.local.shared.config.dns.as_ref()?.resolver
    }
}

impl Surroundings for Names {
    fn mesh(&self) -> Arc<Snapshot> {
        self.0.local.shared.keeper.view().mesh.clone()
    }

    fn client(&self, mesh: &Snapshot) -> Option<Arc<Workload>> {
        self.0.pod.workload(mesh).cloned()
    }

    fn pod(&self) -> u64 {
        self.0.pod.netns.cookie()
    }

    fn asked_by_datagram(&self, client: SocketAddr) -> Option<SocketAddr> {
        let Some(kernel) = &self.0.local.shared.kernel else {
            return self.fallback();
        };
        let asked = kernel.resolver_of(self.cookie(), client);
        asked.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot find out which resolver was asked");
            None
        })
    }

    fn asked_by_stream(&self, client: SocketAddr) -> Option<SocketAddr> {
        let Some(kernel) = &self.0.local.shared.kernel else {
            return self.fallback();
        };
        match kernel.original_destination(self.cookie(), client) {
            Ok(origin) => origin.map(|origin| origin.destination),
            Err(error) => {
                tracing::error!(%error, "cannot find out which resolver was asked");
                None
            }
        }
    }

    fn socket(&self, resolver: SocketAddr) -> io::Result<UdpSocket> {
        let mark = self.0.local.shared.config.mark;
        Dial::datagrams(&self.0.pod.netns, resolver, mark)
    }

    async fn connect(&self, resolver: SocketAddr) -> io::Result<TcpStream> {
        let config = &self.0.local.shared.config;
        let source = Source::Pod { mark: config.mark };
        let netns = &self.0.pod.netns;
        config.dial.connect(netns, resolver, source).await
    }

    async fn reply(&self, socket: &UdpSocket, reply: &[u8], client: SocketAddr) -> io::Result<()> {
        match kernel::reply_source(client) {
            Some(source) => pods::send_from(socket, source, client, reply).await,
            None => socket.send_to(reply, client).await.map(drop),
        }
    }

    fn dice(&self) -> u64 {
        self.0.local.dice()
    }
}
