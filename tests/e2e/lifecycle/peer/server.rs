//! A scripted HBONE server that answers every CONNECT with the same frames.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::SockRef;
use ztunnel_tests::net::Host;

use super::Leaf;
use super::frames::{END_HEADERS, Kind, frame};
use crate::assertions::{self, LIMIT};

/// The length of the client's preface.
const PREFACE: usize = 24;
/// `:status: 200` is entry 8 of HPACK's static table.
const OK: u8 = 0x88;
const ACK: u8 = 1;

/// The frames after a response, for the stream with this number.
type Script = Arc<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

/// A server that sends the script in every tunnel, until it is dropped. Response and script are
/// sent in one write.
pub(crate) struct Scripted {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    tls: Arc<ServerConfig>,
    script: Mutex<Script>,
    stopping: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

impl Scripted {
    /// Listens on a port of a host that no proxy serves.
    pub(crate) fn start(host: &Host, port: u16, leaf: Leaf) -> Self {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        // A process that another test has just forked may hold a copy of the previous listener.
        let listener = assertions::wait(|| host.enter(|| TcpListener::bind(any)).ok()).unwrap();
        // SO_RCVTIMEO also limits accept, see socket(7).
        SockRef::from(&listener)
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let mut tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(leaf.chain, leaf.key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let shared = Arc::new(Shared {
            tls: Arc::new(tls),
            script: Mutex::new(Arc::new(|_stream| Vec::new())),
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let thread = {
            let shared = shared.clone();
            thread::spawn(move || accept(&listener, &shared))
        };
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Sets the script for tunnels that are opened from now on.
    pub(crate) fn set_script(&self, script: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Arc::new(script);
        // A connection with GOAWAY accepts no more tunnels; the client opens a new one.
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            drop(connection.shutdown(Shutdown::Both));
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            drop(connection.shutdown(Shutdown::Both));
        }
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut serving = Vec::new();
    while !shared.stopping.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((tcp, _)) => {
                let shared = shared.clone();
                serving.push(thread::spawn(move || drop(serve(tcp, &shared))));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("accepting: {error}"),
        }
    }
    for thread in serving {
        drop(thread.join());
    }
}

fn serve(tcp: TcpStream, shared: &Shared) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(LIMIT))?;
    shared.connections.lock().unwrap().push(tcp.try_clone()?);
    let session = ServerConnection::new(shared.tls.clone()).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(session, tcp);
    stream.read_exact(&mut [0; PREFACE])?;
    stream.write_all(&frame(Kind::Settings, 0, 0, &[]))?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut body = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut body)?;
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let (kind, flags) = (head[3], head[4]);
        if kind == Kind::Headers as u8 {
            let script = shared.script.lock().unwrap().clone();
            let mut all = frame(Kind::Headers, END_HEADERS, id, &[OK]);
            all.extend(script(id));
            stream.write_all(&all)?;
        } else if kind == Kind::Settings as u8 && flags & ACK == 0 {
            stream.write_all(&frame(Kind::Settings, ACK, 0, &[]))?;
        } else if kind == Kind::Ping as u8 && flags & ACK == 0 {
            stream.write_all(&frame(Kind::Ping, ACK, 0, &body))?;
        }
        stream.flush()?;
    }
}
