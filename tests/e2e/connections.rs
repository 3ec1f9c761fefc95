//! Connections whose two ends the test holds.
//!
//! A socket stays in the network namespace in which it was created, so the test's own thread can
//! use it. Each wait has a time limit: a connection that hangs fails the test.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
pub(crate) use ztunnel_tests::data_path::TIMEOUT;
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::sniff::{SETTLE, SniffedTraffic, Sniffer};
use ztunnel_tests::traffic::{IoMode, Stream};

/// The interval of polling.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A listener on both address families of a host.
pub(crate) fn listen(host: &Host, port: u16) -> TcpListener {
    host.enter(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        socket.set_only_v6(false).unwrap();
        socket.set_reuse_address(true).unwrap();
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        socket.bind(&any.into()).unwrap();
        socket.listen(1024).unwrap();
        socket.into()
    })
}

/// Connects from a host.
pub(crate) fn dial(host: &Host, to: SocketAddr) -> io::Result<Stream> {
    let stream = host.enter(|| Stream::connect(to, IoMode::Blocking, TIMEOUT))?;
    set_timeouts(&stream);
    Ok(stream)
}

/// Accepts the next connection of a listener.
pub(crate) fn accept(listener: &TcpListener) -> Stream {
    // SO_RCVTIMEO also limits accept, see socket(7).
    SockRef::from(listener)
        .set_read_timeout(Some(TIMEOUT))
        .unwrap();
    let (stream, _) = listener.accept().expect("no connection arrived");
    let end = Stream::new(stream, IoMode::Blocking).unwrap();
    set_timeouts(&end);
    end
}

/// Connects from a host to a listener that is reachable at `to`. Returns both ends.
pub(crate) fn connect(host: &Host, to: SocketAddr, listener: &TcpListener) -> (Stream, Stream) {
    let client = dial(host, to).unwrap();
    (client, accept(listener))
}

fn set_timeouts(stream: &Stream) {
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
}

/// Converts an IPv4-mapped address to IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The addresses of a pod's port 8080: the pod's own and the service's, in both families.
pub(crate) fn addresses_of(server: &Host) -> [SocketAddr; 4] {
    let service = Mesh::service(server);
    [
        server.at(Family::V4, 8080),
        server.at(Family::V6, 8080),
        service.at(Family::V4, 80),
        service.at(Family::V6, 80),
    ]
}

/// Runs `work` while a sniffer searches the link between nodes `a` and `b` for `marker`.
pub(crate) fn sniffed<T>(
    world: &World,
    marker: &str,
    work: impl FnOnce() -> T,
) -> (T, SniffedTraffic) {
    let sniffer = Sniffer::between(world.node("a"), "b", marker.as_bytes()).unwrap();
    let outcome = work();
    thread::sleep(SETTLE);
    (outcome, sniffer.finish().unwrap())
}

/// Polls until `look` returns a value.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            started.elapsed() < TIMEOUT,
            "not within {TIMEOUT:?}: {what}"
        );
        thread::sleep(POLL_INTERVAL);
    }
}
