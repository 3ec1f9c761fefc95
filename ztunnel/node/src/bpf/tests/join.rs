//! Two pods of one node whose connections are joined: what goes past TCP, what does not, and that
//! nothing is ever overtaken, whenever it is sent.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use nix::sched::{CloneFlags, setns, unshare};
use smallvec::smallvec;
use ztunnel_ebpf_types::{FlowState, JOIN_PAST, JOIN_TCP, Join};

use super::super::PodCapture;
use super::super::sys::{Map, open_pin};
use super::world::{
    OTHER4, OTHER6, POD4, POD6, World, at, in_namespace, listen, set, tcp, this_namespace,
};
use crate::pods::netlab::{give, index, request, up};
use mesh::NetnsCookie;
use mesh::fastpath::{Backend, Ends, FastPathEntry, FastPathKey};

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
    _inbound: TcpListener,
    joins: Map<u32, Join>,
}

impl Pods {
    fn new() -> Self {
        let world = World::new();
        world.kernel.join().unwrap();
        let far = spawn_namespace();
        let (server, inbound, cookie) = visit(&far, || {
            (
                listen(at("[::]:8080")),
                listen(at("[::]:15006")),
                this_namespace(),
            )
        });
        let pod = PodCapture {
            cookie,
            netns: far.as_fd(),
            addresses: &[SERVER4.parse().unwrap(), SERVER6.parse().unwrap()],
            inbound: inbound.as_fd(),
            dns: false,
        };
        world.kernel.enroll(&pod).unwrap();
        // Whichever address the client gets must be its pod's.
        world.enroll_with(&[POD4, POD6, OTHER4, OTHER6], world.inbound.as_fd());
        for address in [SERVER4, SERVER6] {
            allow(
                &world,
                cookie,
                SocketAddr::new(address.parse().unwrap(), PORT),
            );
        }
        let pin = open_pin(&world.kernel.pins.map("JOINS")).unwrap();
        Self {
            joins: Map::new(pin, "JOINS"),
            world,
            far,
            server,
            _inbound: inbound,
        }
    }

    fn accept(&self) -> TcpStream {
        let (socket, _) = super::world::accept(&self.server).expect("a connection");
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        socket
    }

    /// The way of the bytes that a socket sends.
    fn way(&self, socket: &TcpStream) -> u32 {
        let join = self.joins.get(&socket.as_raw_fd().cast_unsigned());
        join.unwrap().expect("the socket is joined").way
    }

    /// The one open connection.
    fn flow(&self) -> FlowState {
        let fast_path_connections = self
            .world
            .kernel
            .maps
            .fast_path_connections
            .entries()
            .unwrap();
        assert_eq!(fast_path_connections.len(), 1, "{fast_path_connections:?}");
        fast_path_connections[0].1
    }
}

/// Lets the client pod call the server pod directly, joined.
fn allow(world: &World, server: NetnsCookie, to: SocketAddr) {
    let call = FastPathKey {
        pod: world.cookie,
        destination: to,
    };
    let verdict = FastPathEntry {
        backends: smallvec![Backend {
            to,
            server: Some(server),
            weight: 1,
            ends: Ends::Joined,
        }],
        total: 1,
    };
    world.kernel.insert_entry(&call, &verdict).unwrap();
}

/// Another namespace, with the far end of the pod's device in it.
fn spawn_namespace() -> File {
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
    visit(&far, || {
        up(1);
        let device = index("far0");
        up(device);
        for address in [SERVER4, SERVER6] {
            give(device, address.parse().unwrap());
        }
    });
    far
}

fn visit<T: Send>(netns: &File, work: impl FnOnce() -> T + Send) -> T {
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
fn both_directions_go_past_tcp_and_are_counted() {
    in_namespace(|| {
        let pods = Pods::new();
        for to in [SERVER4, SERVER6, "::ffff:10.9.0.3"] {
            // On a busy machine one may stay with TCP.
            let joined = (0..10).any(|_| exchange(&pods, address(to)) == [JOIN_PAST; 2]);
            assert!(joined, "{to}");
        }
    });
}

/// Bytes both ways over a connection of its own; the ways that they took.
fn exchange(pods: &Pods, to: SocketAddr) -> [u32; 2] {
    let mut client = TcpStream::connect(to).unwrap();
    let mut server = pods.accept();
    client.write_all(&[1; 1000]).unwrap();
    client.write_all(&[2; 500]).unwrap();
    server.write_all(&[3; 70_000]).unwrap();
    assert_eq!(read(&server, 1500)[999..1001], [1, 2]);
    assert_eq!(read(&client, 70_000), [3; 70_000]);
    let ways = [pods.way(&client), pods.way(&server)];
    let past = |way: u32, bytes: u64| if way == JOIN_PAST { bytes } else { 0 };
    let flow = pods.flow();
    assert_eq!(flow.joined_request, past(ways[0], 1500), "{to}");
    assert_eq!(flow.joined_response, past(ways[1], 70_000), "{to}");
    drop((client, server));
    gone(pods);
    ways
}

/// Waits until the connection is not open any more.
fn gone(pods: &Pods) {
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

/// Numbers each eight bytes long, in order and without a gap.
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
fn what_is_sent_at_the_moment_of_connect_is_not_overtaken() {
    const COUNT: u64 = 50;
    in_namespace(|| {
        let pods = Pods::new();
        let mut past = 0;
        for round in 0..300 {
            let to = address([SERVER4, SERVER6][round % 2]);
            let client = tcp(to.is_ipv4());
            client.set_nonblocking(round % 3 != 0).unwrap();
            let _begun = client.connect(&to.into());
            let mut client = TcpStream::from(client);
            // A socket that is not connected yet says so.
            for number in 0..COUNT {
                while client.write(&number.to_be_bytes()).is_err() {}
            }
            let server = pods.accept();
            expect_order(&server, COUNT);
            if pods.way(&client) == JOIN_PAST {
                past += 1;
            }
        }
        eprintln!("{past} of 300 went past TCP from the first byte");
        assert!(past > 0);
    });
}

#[test]
#[ignore = "needs root"]
fn a_call_that_waits_for_the_connection_keeps_its_place() {
    in_namespace(|| {
        let pods = Pods::new();
        for _ in 0..50 {
            // Connects, and sends when that is done, from inside one call.
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
            assert_eq!(pods.way(&client), JOIN_TCP);
        }
    });
}

/// A client whose first write connects, and sends with the SYN if it may.
fn deferred() -> TcpStream {
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
        // Client and server, without cookies.
        let fast = || std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "519").unwrap();
        fast();
        visit(&pods.far, fast);
        set(&pods.server, SOL_TCP, TCP_FASTOPEN, 64);
        for _ in 0..50 {
            let mut client = deferred();
            client.write_all(&0_u64.to_be_bytes()).unwrap();
            for number in 1..20_u64 {
                client.write_all(&number.to_be_bytes()).unwrap();
            }
            let mut server = pods.accept();
            expect_order(&server, 20);
            assert_eq!(pods.way(&client), JOIN_TCP);
            server.write_all(b"answer").unwrap();
            assert_eq!(read(&client, 6), b"answer");
        }
        let stat = visit(&pods.far, || {
            std::fs::read_to_string("/proc/thread-self/net/netstat")
        });
        assert!(counter(&stat.unwrap(), "TCPFastOpenPassive") >= 50);
    });
}

/// A value of `/proc/net/netstat`.
fn counter(stat: &str, name: &str) -> u64 {
    let mut lines = stat.lines();
    let names = lines.next().unwrap().split(' ');
    let values = lines.next().unwrap().split(' ');
    let (_, value) = names.zip(values).find(|(found, _)| *found == name).unwrap();
    value.parse().unwrap()
}

#[test]
#[ignore = "needs root"]
fn a_server_that_is_established_by_data_gets_it_in_order() {
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
            assert_eq!(pods.way(&client), JOIN_TCP);
        }
    });
}

#[test]
#[ignore = "needs root"]
fn what_is_sent_to_an_end_that_is_gone_goes_to_tcp_which_knows() {
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
        assert_eq!(pods.way(&client), JOIN_TCP);
    });
}

#[test]
#[ignore = "needs root"]
fn a_take_over_keeps_joined_connections_and_joins_new_ones() {
    in_namespace(|| {
        let mut pods = Pods::new();
        let mut old = TcpStream::connect(address(SERVER4)).unwrap();
        let old_server = pods.accept();
        old.write_all(b"one").unwrap();
        let config = super::world::config(pods.world.directory.clone());
        pods.world.kernel = super::super::Kernel::open(&config).unwrap();
        pods.world.kernel.join().unwrap();
        old.write_all(b"two").unwrap();
        assert_eq!(read(&old_server, 6), b"onetwo");
        drop((old, old_server));
        gone(&pods);
        assert!((0..10).any(|_| exchange(&pods, address(SERVER6)) == [JOIN_PAST; 2]));
    });
}
