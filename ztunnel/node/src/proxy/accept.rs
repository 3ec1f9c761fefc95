//! Step 1: accept a connection.
//!
//! Each pod has listeners for four kinds of clients. Outbound: the pod's application. Inbound plaintext:
//! a client without a tunnel. For both, the socket's own address is the original destination, unless
//! rules inside the pod redirected the connection; then the kernel's connection tracking knows it.
//! HBONE: the peer of a tunnel. SOCKS: an application that names its destination. Where DNS is
//! captured, the pod has DNS sockets, too. `outbound` and `inbound` find the original destination
//! and make a [`Connection`](super::connection::Connection) of the accepted socket.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, UdpSocket};

use super::connection::Accepted;
use super::pod_context::PodContext;
use super::{inbound, names, outbound};
use crate::dns::{Server, ServerContext};
use crate::pods::{self, DnsSockets, Listeners};

/// The delay before the next accept when the process has no descriptors or memory left.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// Starts to accept on one worker's listeners of a pod.
///
/// # Errors
/// When a listener cannot be registered with the worker's event queue.
pub(super) fn start(context: &Rc<PodContext>, listeners: Listeners) -> io::Result<()> {
    let Listeners {
        outbound_v4,
        outbound_v6,
        inbound,
        hbone,
        captured,
        socks5,
        dns,
    } = listeners;
    for listener in [Some(outbound_v4), outbound_v6].into_iter().flatten() {
        accept_on(context, listener, outbound::carry_redirected)?;
    }
    let (captured, captured_dns) = captured.map(|of| (of.outbound, of.dns)).unzip();
    if let Some(listener) = captured {
        accept_on(context, listener, outbound::carry_captured)?;
    }
    for listener in socks5 {
        accept_on(context, listener, outbound::carry_socks)?;
    }
    accept_on(context, inbound, inbound::carry_plain)?;
    if let Some(hbone) = hbone {
        accept_on(context, hbone, inbound::serve_tunnels)?;
    }
    let Some(names) = names::server(context) else {
        return Ok(());
    };
    if let Some(listener) = captured_dns.flatten() {
        accept_on(context, listener, serve_stream(names.clone()))?;
    }
    for DnsSockets { udp, tcp } in dns {
        accept_on(context, tcp, serve_stream(names.clone()))?;
        let socket = UdpSocket::from_std(udp)?;
        let unwanted = unwanted(context);
        context.serve(names.clone().serve_datagrams(socket, unwanted));
    }
    Ok(())
}

/// Answers the queries of a connection.
fn serve_stream<C: ServerContext + 'static>(
    server: Rc<Server<C>>,
) -> impl Fn(Rc<PodContext>, Accepted) -> Pin<Box<dyn Future<Output = ()>>> {
    move |context, accepted| {
        let Accepted { stream, peer, .. } = accepted;
        Box::pin(server.clone().serve_stream(stream, peer, left(&context)))
    }
}

/// Resolves when the pod leaves or this process ends.
fn left(context: &PodContext) -> impl Future<Output = ()> + use<> {
    let mut drain = context.drain.clone();
    async move { drop(drain.wait_for(|draining| *draining).await) }
}

/// As [`left`]; also resolves when another process serves the pod.
fn unwanted(context: &PodContext) -> impl Future<Output = ()> + use<> {
    let (left, mut resigned) = (left(context), context.resigned.clone());
    async move {
        tokio::select! {
            () = left => {}
            _other = resigned.wait_for(|resigned| *resigned) => {}
        }
    }
}

/// Accepts until the pod leaves or another process takes over. Connections that already wait in the
/// accept queue are accepted first. Until the listener is closed, the kernel delivers later ones to
/// the other process's listener (`pods::routing`). Each connection runs `serve` in its own task.
fn accept_on<F: Future<Output = ()> + 'static>(
    context: &Rc<PodContext>,
    listener: std::net::TcpListener,
    serve: impl Fn(Rc<PodContext>, Accepted) -> F + 'static,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let context = context.clone();
    tokio::task::spawn_local(async move {
        let mut drain = context.drain.clone();
        let mut resigned = context.resigned.clone();
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = pods::accept(&listener) => accepted,
                _left = drain.wait_for(|draining| *draining) => break,
                _other = resigned.wait_for(|resigned| *resigned) => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let accepted = Accepted {
                        stream,
                        peer,
                        accepted_at: Instant::now(),
                    };
                    context.spawn(serve(context.clone(), accepted));
                }
                Err(error) if out_of_resources(&error) => {
                    tracing::error!(%error, pod = %context.pod.uid.0, "cannot accept a connection: the process has no descriptor or memory left; raise the limit on open files");
                    tokio::time::sleep(EXHAUSTED).await;
                }
                // The client closed the connection before it was accepted.
                Err(error) => tracing::debug!(%error, "accept"),
            }
        }
    });
    Ok(())
}

fn out_of_resources(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
