//! Joined connections between two pods of one node: which bytes bypass TCP, and that bytes never
//! overtake others, whenever they are sent.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use nix::sched::{CloneFlags, setns, unshare};
use smallvec::smallvec;
use ztunnel_ebpf_types::{ConnectionState, JOIN_REDIRECTED, JOIN_TCP, JoinState};

use super::super::sys::{Map, open_pin};
use super::super::{CaptureListeners, PodCapture};
use super::world::{
    OTHER4, OTHER6, POD4, POD6, World, at, in_namespace, listen, listen_captured, set, tcp,
    this_namespace,
};
use crate::pods::netlab::{add_address, index, request, set_link_up};
use mesh::NetnsCookie;
use mesh::fastpath::{Backend, FastPathEntry, FastPathKey, JoinMode};

const SERVER4: &str = "10.9.0.3";
const SERVER6: &str = "fd09::3";
const PORT: u16 = 8080;

const SOL_TCP: i32 = 6;
const TCP_DEFER_ACCEPT: i32 = 9;
const TCP_FASTOPEN: i32 = 23;
const TCP_FASTOPEN_CONNECT: i32 = 30;

/// A client pod in this thread's namespace, a server pod in another one.
struct Pods {
    world: World,
    far: File,
    server: TcpListener,
    _listeners: [TcpListener; 2],
    states: Map<u32, JoinState>,
}

impl Pods {
    fn new() -> Self {
        let world = World::new();
        world.kernel.enable_join().unwrap();
        let far = server_namespace();
        let (server, inbound, outbound, cookie) = in_netns(&far, || {
            (
                listen(at("[::]:8080")),
                listen(at("[::]:15006")),
                listen_captured(&world.kernel, 15001),
                this_namespace(),
            )
        });
        let pod = PodCapture {
            cookie,
            netns: far.as_fd(),
            addresses: &[SERVER4.parse().unwrap(), SERVER6.parse().unwrap()],
            listeners: CaptureListeners {
                inbound: inbound.as_fd(),
                outbound: outbound.as_fd(),
                dns: None,
            },
        };
        world.kernel.enroll(&pod).unwrap();
        // The client may get any of these as its source address: each must be its pod's.
        world.enroll_with(&[POD4, POD6, OTHER4, OTHER6], world.inbound.as_fd());
        for address in [SERVER4, SERVER6] {
            allow(
                &world,
                cookie,
                SocketAddr::new(address.parse().unwrap(), PORT),
            );
        }
        let pin = open_pin(&world.kernel.pins.map("JOIN_STATES")).unwrap();
        Self {
            states: Map::new(pin, "JOIN_STATES"),
            world,
            far,
            server,
            _listeners: [inbound, outbound],
        }
    }

    fn accept(&self) -> TcpStream {
        let (socket, _) = super::world::accept(&self.server).expect("a connection");
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        socket
    }

    /// How the bytes that a socket sends reach the peer.
    fn mode(&self, socket: &TcpStream) -> u32 {
        let state = self.states.get(&socket.as_raw_fd().cast_unsigned());
        state.unwrap().expect("the socket is joined").mode
    }

    /// The only open connection.
    fn connection(&self) -> ConnectionState {
        let connections = self.world.kernel.maps.connections.entries().unwrap();
        assert_eq!(connections.len(), 1, "{connections:?}");
        connections[0].1
    }
}

/// Inserts an entry that lets the client pod connect to the server pod, joined.
fn allow(world: &World, server: NetnsCookie, to: SocketAddr) {
    let key = FastPathKey {
        pod: world.cookie,
        destination: to,
    };
    let entry = FastPathEntry {
        backends: smallvec![Backend {
            to,
            server: Some(server),
            weight: 1,
            join_mode: JoinMode::Joined,
        }],
        total: 1,
    };
    world.kernel.insert_entry(&key, &entry).unwrap();
}

/// Another namespace with the other end of the pod's device in it.
fn server_namespace() -> File {
    let far = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    let far = far.join().unwrap();
    let mut link = LinkMessage::default();
    link.header.index = index("far0");
    link.attributes
        .push(LinkAttribute::NetNsFd(far.as_raw_fd()));
    request(RouteNetlinkMessage::SetLink(link));
    in_netns(&far, || {
        set_link_up(1);
        let device = index("far0");
        set_link_up(device);
        for address in [SERVER4, SERVER6] {
            add_address(device, address.parse().unwrap());
        }
    });
    far
}

fn in_netns<T: Send>(netns: &File, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let work = || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(work).join().unwrap()
    })
}

fn address(of: &str) -> SocketAddr {
    SocketAddr::new(of.parse().unwrap(), PORT)
}

fn read(mut from: &TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
#[ignore = "needs root"]
fn both_directions_bypass_tcp_and_are_counted() {
    in_namespace(|| {
        let pods = Pods::new();
        for to in [SERVER4, SERVER6, "::ffff:10.9.0.3"] {
            // On a busy machine a connection may stay with TCP.
            let joined = (0..10).any(|_| exchange(&pods, address(to)) == [JOIN_REDIRECTED; 2]);
            assert!(joined, "{to}");
        }
    });
}

/// Sends bytes in both directions over a new connection; returns how they reached the peer.
fn exchange(pods: &Pods, to: SocketAddr) -> [u32; 2] {
    let mut client = TcpStream::connect(to).unwrap();
    let mut server = pods.accept();
    client.write_all(&[1; 1000]).unwrap();
    client.write_all(&[2; 500]).unwrap();
    server.write_all(&[3; 70_000]).unwrap();
    assert_eq!(read(&server, 1500)[999..1001], [1, 2]);
    assert_eq!(read(&client, 70_000), [3; 70_000]);
    let modes = [pods.mode(&client), pods.mode(&server)];
    let redirected = |mode: u32, bytes: u64| if mode == JOIN_REDIRECTED { bytes } else { 0 };
    let connection = pods.connection();
    assert_eq!(
        connection.joined_request_bytes,
        redirected(modes[0], 1500),
        "{to}"
    );
    assert_eq!(
        connection.joined_response_bytes,
        redirected(modes[1], 70_000),
        "{to}"
    );
    drop((client, server));
    wait_until_closed(pods);
    modes
}

/// Waits until no connection is open.
fn wait_until_closed(pods: &Pods) {
    for _ in 0..200 {
        if pods
            .world
            .kernel
            .fast_path_connections()
            .unwrap()
            .is_empty()
        {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{:?}", pods.world.kernel.fast_path_connections());
}

/// Reads numbers of eight bytes each, in order and without a gap.
fn expect_order(server: &TcpStream, count: u64) {
    let bytes = read(server, usize::try_from(count).unwrap() * 8);
    for (expected, found) in (0_u64..).zip(bytes.chunks_exact(8)) {
        assert_eq!(
            found,
            expected.to_be_bytes(),
            "number {expected} of {count}"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn bytes_sent_during_connect_are_not_overtaken() {
    const COUNT: u64 = 50;
    in_namespace(|| {
        let pods = Pods::new();
        let mut redirected = 0;
        for round in 0..300 {
            let to = address([SERVER4, SERVER6][round % 2]);
            let client = tcp(to.is_ipv4());
            client.set_nonblocking(round % 3 != 0).unwrap();
            let _begun = client.connect(&to.into());
            let mut client = TcpStream::from(client);
            // Writing fails until the socket is connected.
            for number in 0..COUNT {
                while client.write(&number.to_be_bytes()).is_err() {}
            }
            let server = pods.accept();
            expect_order(&server, COUNT);
            if pods.mode(&client) == JOIN_REDIRECTED {
                redirected += 1;
            }
        }
        eprintln!("{redirected} of 300 connections bypassed TCP from the first byte");
        assert!(redirected > 0);
    });
}

#[test]
#[ignore = "needs root"]
fn a_send_that_waits_for_the_connection_is_not_overtaken() {
    in_namespace(|| {
        let pods = Pods::new();
        for _ in 0..50 {
            // One call that connects, and sends when the connection is established.
            let socket = tcp(true);
            let to = address(SERVER4).into();
            let sent = socket.send_to_with_flags(&0_u64.to_be_bytes(), &to, libc::MSG_FASTOPEN);
            assert_eq!(sent.unwrap(), 8);
            let mut client = TcpStream::from(socket);
            let server = pods.accept();
            for number in 1..20_u64 {
                client.write_all(&number.to_be_bytes()).unwrap();
            }
            expect_order(&server, 20);
            assert_eq!(pods.mode(&client), JOIN_TCP);
        }
    });
}

/// A client whose first write connects, and sends with the SYN if possible.
fn deferred_connect() -> TcpStream {
    let client = tcp(true);
    set(&client, SOL_TCP, TCP_FASTOPEN_CONNECT, 1);
    client.connect(&address(SERVER4).into()).unwrap();
    client.into()
}

#[test]
#[ignore = "needs root"]
fn bytes_that_come_with_the_syn_are_not_overtaken() {
    in_namespace(|| {
        let pods = Pods::new();
        // For client and server, without cookies.
        let enable_fast_open = || std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "519").unwrap();
        enable_fast_open();
        in_netns(&pods.far, enable_fast_open);
        set(&pods.server, SOL_TCP, TCP_FASTOPEN, 64);
        for _ in 0..50 {
            let mut client = deferred_connect();
            client.write_all(&0_u64.to_be_bytes()).unwrap();
            for number in 1..20_u64 {
                client.write_all(&number.to_be_bytes()).unwrap();
            }
            let mut server = pods.accept();
            expect_order(&server, 20);
            assert_eq!(pods.mode(&client), JOIN_TCP);
            server.write_all(b"answer").unwrap();
            assert_eq!(read(&client, 6), b"answer");
        }
        let stat = in_netns(&pods.far, || {
            std::fs::read_to_string("/proc/thread-self/net/netstat")
        });
        assert!(counter(&stat.unwrap(), "TCPFastOpenPassive") >= 50);
    });
}

/// A counter of `/proc/net/netstat`.
fn counter(stat: &str, name: &str) -> u64 {
    let mut lines = stat.lines();
    let names = lines.next().unwrap().split(' ');
    let values = lines.next().unwrap().split(' ');
    let (_, value) = names.zip(values).find(|(found, _)| *found == name).unwrap();
    value.parse().unwrap()
}

#[test]
#[ignore = "needs root"]
fn a_server_with_deferred_accept_gets_the_bytes_in_order() {
    in_namespace(|| {
        let pods = Pods::new();
        set(&pods.server, SOL_TCP, TCP_DEFER_ACCEPT, 5);
        for _ in 0..50 {
            let mut client = TcpStream::connect(address(SERVER4)).unwrap();
            for number in 0..20_u64 {
                client.write_all(&number.to_be_bytes()).unwrap();
            }
            let server = pods.accept();
            expect_order(&server, 20);
            assert_eq!(pods.mode(&client), JOIN_TCP);
        }
    });
}

#[test]
#[ignore = "needs root"]
fn bytes_for_a_closed_end_go_to_tcp_which_reports_the_reset() {
    in_namespace(|| {
        let pods = Pods::new();
        let mut client = TcpStream::connect(address(SERVER4)).unwrap();
        let server = pods.accept();
        client.write_all(b"before").unwrap();
        assert_eq!(read(&server, 6), b"before");
        drop(server);
        let failed = (0..100).find_map(|_| {
            std::thread::sleep(Duration::from_millis(1));
            client.write_all(b"after").err()
        });
        assert!(failed.is_some(), "a reset reaches the client");
        assert_eq!(pods.mode(&client), JOIN_TCP);
    });
}

#[test]
#[ignore = "needs root"]
fn a_takeover_keeps_joined_connections_and_joins_new_ones() {
    in_namespace(|| {
        let mut pods = Pods::new();
        let mut old = TcpStream::connect(address(SERVER4)).unwrap();
        let old_server = pods.accept();
        old.write_all(b"one").unwrap();
        let config = super::world::config(pods.world.directory.clone());
        pods.world.kernel = super::super::Kernel::open(&config).unwrap();
        pods.world.kernel.enable_join().unwrap();
        old.write_all(b"two").unwrap();
        assert_eq!(read(&old_server, 6), b"onetwo");
        drop((old, old_server));
        wait_until_closed(&pods);
        assert!((0..10).any(|_| exchange(&pods, address(SERVER6)) == [JOIN_REDIRECTED; 2]));
    });
}
