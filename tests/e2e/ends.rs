//! The two ends of a connection, held by the test itself.
//!
//! A socket stays in the network namespace it was made in, so the test's own thread may use it
//! once it exists. Every wait has a limit: a connection that hangs fails the test.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
pub(crate) use ztunnel_tests::lane::PATIENCE;
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::sniff::{SETTLE, Seen, Sniffer};
use ztunnel_tests::traffic::{End, Manner};

/// How often something that becomes true later is looked at.
const PACE: Duration = Duration::from_millis(20);

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
pub(crate) fn dial(host: &Host, to: SocketAddr) -> io::Result<End> {
    let stream = host.enter(|| End::connect(to, Manner::Blocking, PATIENCE))?;
    limit(&stream);
    Ok(stream)
}

/// The next connection of a listener.
pub(crate) fn accept(listener: &TcpListener) -> End {
    // It also limits accept, see socket(7).
    SockRef::from(listener)
        .set_read_timeout(Some(PATIENCE))
        .unwrap();
    let (stream, _) = listener.accept().expect("nobody connected");
    let end = End::new(stream, Manner::Blocking).unwrap();
    limit(&end);
    end
}

/// Both ends of a connection from a host to a listener that is called at `to`.
pub(crate) fn connect(host: &Host, to: SocketAddr, listener: &TcpListener) -> (End, End) {
    let client = dial(host, to).unwrap();
    (client, accept(listener))
}

fn limit(stream: &End) {
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
}

/// An address as its family writes it, also where a socket of both families tells it.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The ways to call a pod's port 8080: by its own address and by its service's, in both families.
pub(crate) fn ways_to(server: &Host) -> [SocketAddr; 4] {
    let service = Mesh::service(server);
    [
        server.at(Family::V4, 8080),
        server.at(Family::V6, 8080),
        service.at(Family::V4, 80),
        service.at(Family::V6, 80),
    ]
}

/// What the link between nodes `a` and `b` showed of `marker` while `work` ran.
pub(crate) fn watched<T>(world: &World, marker: &str, work: impl FnOnce() -> T) -> (T, Seen) {
    let sniffer = Sniffer::between(world.node("a"), "b", marker.as_bytes()).unwrap();
    let outcome = work();
    thread::sleep(SETTLE);
    (outcome, sniffer.finish().unwrap())
}

/// Waits until `look` finds something.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        thread::sleep(PACE);
    }
}
