//! Tests of the module's behaviour, and their shared setup.

mod connection_end;
mod flushes;
mod nested;
mod pool;
mod resets;
mod retries;
mod revocation;
mod server;
mod tunnels;
mod wire;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::smallvec;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::task::LocalSet;

use super::*;
use mesh::Identity;

/// Runs a test on one thread, as a worker does, with a time limit.
fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limited = async {
        tokio::time::timeout(Duration::from_secs(30), test)
            .await
            .unwrap()
    };
    LocalSet::new().block_on(&runtime, limited);
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn connect() -> Connect {
    Connect::to(address("10.0.0.2:8080"))
}

fn key(account: &str) -> PoolKey {
    PoolKey {
        netns: 1,
        source: Identity::new("cluster.local", "default", account).unwrap(),
        source_ip: "10.0.0.1".parse().unwrap(),
        destinations: smallvec![Identity::new("cluster.local", "default", "b").unwrap()],
        hbone: address("10.0.0.2:15008"),
    }
}

/// The default settings, without PINGs.
fn config() -> Config {
    Config {
        keepalive: None,
        ..Config::default()
    }
}

/// Lets the other tasks of the thread run.
async fn run_other_tasks() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A peer that accepts any number of connections and every CONNECT on them, and keeps the tunnels.
struct Peer {
    config: Config,
    drain: watch::Sender<bool>,
    dials: Cell<usize>,
    tunnels: RefCell<Vec<Tunnel>>,
    ended: RefCell<Vec<Result<(), ServeError>>>,
}

impl Peer {
    fn new(config: Config) -> Rc<Self> {
        Rc::new(Self {
            config,
            drain: watch::Sender::new(false),
            dials: Cell::default(),
            tunnels: RefCell::default(),
            ended: RefCell::default(),
        })
    }

    /// A dial: a new connection to this peer.
    fn dial(
        self: &Rc<Self>,
    ) -> impl Future<Output = Result<Dialled<DuplexStream>, Infallible>> + 'static {
        self.dials.set(self.dials.get() + 1);
        let peer = Rc::clone(self);
        async move {
            // Pending at first, as a real dial is.
            tokio::task::yield_now().await;
            let (local, remote) = tokio::io::duplex(64 * 1024);
            tokio::task::spawn_local(async move {
                let keep = |request: Request| {
                    if let Ok(tunnel) = request.accept() {
                        peer.tunnels.borrow_mut().push(tunnel);
                    }
                };
                let ended = serve(remote, &peer.config, peer.drain.subscribe(), keep).await;
                peer.ended.borrow_mut().push(ended);
            });
            Ok(Dialled::new(local))
        }
    }

    fn take_tunnel(&self) -> Tunnel {
        self.tunnels.borrow_mut().remove(0)
    }
}

async fn open(pool: &Rc<Pool<Infallible>>, key: &PoolKey, peer: &Rc<Peer>) -> Tunnel {
    pool.open(key, &connect(), || peer.dial()).await.unwrap()
}

/// Both ends of one tunnel.
async fn pair(local: Config, remote: Config) -> (Tunnel, Tunnel, Rc<Pool<Infallible>>, Rc<Peer>) {
    let peer = Peer::new(remote);
    let pool = Pool::new(Rc::new(local));
    let tunnel = open(&pool, &key("a"), &peer).await;
    let other = peer.take_tunnel();
    (tunnel, other, pool, peer)
}

/// Reads to the half-close and releases the bytes.
async fn read_all(recv: &mut Receiver) -> Result<Vec<u8>, TunnelError> {
    let mut all = Vec::new();
    while let Some(data) = recv.data().await {
        let data = data?;
        recv.release(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok(all)
}

/// An HTTP/2 frame, written by hand.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const SETTINGS: u8 = 4;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
/// `:status: 200` is entry 8 of HPACK's static table.
fn ok_headers(stream: u32) -> Vec<u8> {
    frame(1, 4, stream, &[0x88])
}
