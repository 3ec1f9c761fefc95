//! The test set-up: a pod with a server, a scripted resolver, and an application.

use prometheus_client::metrics::counter::Counter;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;

use super::super::super::wire;
use super::super::*;
use hickory_proto::op::{Header, ResponseCode};
use mesh::{Snapshot, Uid, Workload, local};
use std::time::Duration;

const MESH: &str = r#"
workloads:
- { uid: client, name: client, namespace: shop, canonicalName: till, canonicalRevision: v7 }
services:
- { name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: ["/10.1.0.1"] }
"#;

/// How long a test waits for an expected event.
const EVENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a test waits for an event that must not happen.
const NO_EVENT_TIMEOUT: Duration = Duration::from_millis(150);

/// The pod and worker of the server.
pub(super) struct Pod {
    mesh: Arc<Snapshot>,
    pub(super) has_workload: Cell<bool>,
    /// Ends the wait for the workload: with success, or with the reason of a refusal.
    pub(super) wait_result: watch::Sender<Option<Result<(), DnsRefusal>>>,
    pub(super) resolver: Cell<Option<SocketAddr>>,
}

impl ServerContext for Rc<Pod> {
    fn mesh(&self) -> Arc<Snapshot> {
        self.mesh.clone()
    }

    fn client(&self, mesh: &Snapshot) -> Option<Arc<Workload>> {
        let workload = mesh.workload_by_uid(&Uid("client".into()));
        workload.filter(|_| self.has_workload.get()).cloned()
    }

    fn kubernetes_namespace(&self) -> Option<&str> {
        Some("shop")
    }

    async fn wait_for_workload(&self) -> Result<(), DnsRefusal> {
        let mut results = self.wait_result.subscribe();
        let result = results
            .wait_for(Option::is_some)
            .await
            .map(|result| *result);
        let result = result.ok().flatten().unwrap_or(Ok(()));
        self.has_workload.set(result.is_ok());
        result
    }

    fn netns_cookie(&self) -> u64 {
        1
    }

    fn resolver_of_datagram(&self, _client: SocketAddr) -> Option<SocketAddr> {
        self.resolver.get()
    }

    fn resolver_of_stream(&self, _stream: &TcpStream, _client: SocketAddr) -> Option<SocketAddr> {
        self.resolver.get()
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(task);
    }

    fn leave_reuseport_group(&self, socket: &UdpSocket) -> io::Result<()> {
        let own_address = socket.local_addr()?.into();
        socket2::SockRef::from(socket).connect(&own_address)
    }

    fn resolver_socket(&self, resolver: SocketAddr) -> io::Result<UdpSocket> {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
        socket.set_nonblocking(true)?;
        socket.connect(resolver)?;
        UdpSocket::from_std(socket)
    }

    async fn connect_to_resolver(&self, resolver: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(resolver).await
    }

    async fn send_reply(
        &self,
        socket: &UdpSocket,
        reply: &[u8],
        client: SocketAddr,
    ) -> io::Result<()> {
        socket.send_to(reply, client).await.map(drop)
    }

    fn random(&self) -> u64 {
        1
    }
}

async fn is_true(mut value: watch::Receiver<bool>) {
    drop(value.wait_for(|value| *value).await);
}

/// A socket with `SO_REUSEPORT`, so that other sockets can share its address.
fn reuseport_socket(address: SocketAddr) -> UdpSocket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&address.into()).unwrap();
    UdpSocket::from_std(socket.into()).unwrap()
}

pub(super) struct World {
    pub(super) pod: Rc<Pod>,
    telemetry: Arc<Telemetry>,
    pub(super) shared: Rc<SharedState>,
    /// Requests that the server stops serving the socket.
    stop: watch::Sender<bool>,
    /// The task that reads datagrams; finished when it has stopped.
    pub(super) serving: tokio::task::JoinHandle<()>,
    /// The resolver that the application addresses.
    pub(super) resolver: UdpSocket,
    /// The same resolver for connections.
    pub(super) resolver_tcp: TcpListener,
    server_tcp: SocketAddr,
    app: UdpSocket,
}

pub(super) fn run(test: impl AsyncFnOnce(World)) {
    // Longer than a test waits: no answer comes from the server's own timeout.
    run_with_timeout(EVENT_TIMEOUT * 6, test);
}

/// As [`run`], with a short resolver timeout.
pub(super) fn run_with_short_timeout(test: impl AsyncFnOnce(World)) {
    run_with_timeout(Duration::from_millis(100), test);
}

fn run_with_timeout(timeout: Duration, test: impl AsyncFnOnce(World)) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .unwrap();
    runtime.block_on(async {
        let world = World::new(timeout).await;
        test(world).await;
    });
}

impl World {
    async fn new(timeout: Duration) -> Self {
        let (resolver_tcp, resolver) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            // Both need the same port, which another process may hold for UDP.
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        let pod = Rc::new(Pod {
            mesh: Arc::new(local::parse(MESH).unwrap().into_snapshot()),
            has_workload: Cell::new(true),
            wait_result: watch::Sender::new(None),
            resolver: Cell::new(Some(resolver.local_addr().unwrap())),
        });
        let telemetry = Telemetry::new(Counter::default());
        let config = Config {
            domain: "cluster.local".into(),
            resolver: None,
            timeout,
        };
        let shared = Rc::<SharedState>::default();
        let server = Server::new(pod.clone(), config, telemetry.clone(), shared.clone());
        let (stop, stopped) = watch::channel(false);
        let socket = reuseport_socket(([127, 0, 0, 1], 0).into());
        let address = socket.local_addr().unwrap();
        let until = is_true(stopped.clone());
        let serving = server.clone().serve_datagrams(socket, until);
        let serving = tokio::task::spawn_local(serving);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server_tcp = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            while let Ok((stream, client)) = listener.accept().await {
                let until = is_true(stopped.clone());
                tokio::task::spawn_local(server.clone().serve_stream(stream, client, until));
            }
        });
        let app = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        app.connect(address).await.unwrap();
        Self {
            pod,
            telemetry,
            shared,
            stop,
            serving,
            resolver,
            resolver_tcp,
            server_tcp,
            app,
        }
    }

    pub(super) async fn send(&self, message: &[u8]) {
        self.app.send(message).await.unwrap();
    }

    /// A socket on the same address as the server's.
    pub(super) fn second_socket(&self) -> UdpSocket {
        reuseport_socket(self.app.peer_addr().unwrap())
    }

    /// Makes the server stop serving the socket.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// The answer that the application receives.
    pub(super) async fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let received = tokio::time::timeout(EVENT_TIMEOUT, self.app.recv(&mut buffer));
        let length = received.await.expect("the server answers").unwrap();
        buffer.truncate(length);
        buffer
    }

    /// Checks that the application receives no answer.
    pub(super) async fn expect_no_reply(&self) {
        let mut buffer = [0; 512];
        let received = tokio::time::timeout(NO_EVENT_TIMEOUT, self.app.recv(&mut buffer)).await;
        assert!(received.is_err(), "{received:?}");
    }

    /// The query that the resolver receives, and its sender.
    pub(super) async fn receive_forwarded(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; MAX_MESSAGE];
        let received = tokio::time::timeout(EVENT_TIMEOUT, self.resolver.recv_from(&mut buffer));
        let (length, from) = received.await.expect("the query is passed on").unwrap();
        buffer.truncate(length);
        (buffer, from)
    }

    /// Checks that the resolver receives no query.
    pub(super) async fn expect_not_forwarded(&self) {
        let mut buffer = [0; 512];
        let received =
            tokio::time::timeout(NO_EVENT_TIMEOUT, self.resolver.recv_from(&mut buffer)).await;
        assert!(received.is_err(), "{received:?}");
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server_tcp).await.unwrap()
    }

    /// Checks a metric's value for the pod's queries over a protocol.
    pub(super) fn expect_count(&self, metric: &str, protocol: &str, value: u64) {
        let labels = format!(
            r#"{{request_query_type="a",request_protocol="{protocol}",source_canonical_service="till",source_canonical_revision="v7"}}"#
        );
        self.sample(&format!("{metric}{labels}"), value);
    }

    /// Checks the number of queries that were refused for a reason.
    pub(super) fn expect_refused(&self, reason: &str, value: u64) {
        let sample = format!(r#"ztunnel_dns_refused_total{{reason="{reason}"}}"#);
        self.sample(&sample, value);
    }

    fn sample(&self, sample: &str, value: u64) {
        let metrics = self.telemetry.encode();
        let found = metrics.lines().find_map(|line| line.strip_prefix(sample));
        let value = value.to_string();
        assert_eq!(
            found.map(str::trim),
            Some(&*value),
            "{sample} in\n{metrics}"
        );
    }
}

/// The answer to a query: the address 192.0.2.77, for a minute.
pub(super) fn reply(query: &[u8]) -> Vec<u8> {
    let mut bytes = query.to_vec();
    bytes[2..4].copy_from_slice(&[0x81, 0x80]);
    bytes[7] = 1;
    bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
    bytes
}

pub(super) fn header(message: &[u8]) -> Header {
    wire::header(message).unwrap()
}

/// Checks that a message is a server failure for the query with this id.
pub(super) fn expect_server_failure(message: &[u8], id: u16) {
    let header = header(message);
    assert_eq!(header.id, id);
    assert_eq!(header.response_code, ResponseCode::ServFail);
}
