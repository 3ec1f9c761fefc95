//! DNS capture: a pod's queries reach the proxy, which finds the resolver, and the application sees
//! the reply come from that resolver.

mod cost;
mod library;

use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};

use super::super::{Kernel, reply_source};
use super::world::{
    DEVICE, MARK, OTHER4, POD4, POD6, World, accept, at, config, dial, in_namespace,
    listen_captured, set, tcp,
};

/// A resolver of each kind: IPv4, IPv6, and IPv4 in mapped form.
const RESOLVERS: [&str; 3] = [
    "192.0.2.53:53",
    "[2001:db8::53]:53",
    "[::ffff:192.0.2.54]:53",
];

/// A pod whose DNS is captured, and the proxy's listeners in it.
struct Proxy {
    world: World,
    v4: UdpSocket,
    v6: UdpSocket,
}

impl Proxy {
    fn new() -> Self {
        Self::of(World::new())
    }

    fn of(mut world: World) -> Self {
        world.dns = Some(listen_captured(&world.kernel, 15053));
        world.enroll();
        let udp = |address| {
            let socket = UdpSocket::bind(at(address)).unwrap();
            let timeout = Some(Duration::from_millis(300));
            socket.set_read_timeout(timeout).unwrap();
            socket
        };
        Self {
            world,
            v4: udp("127.0.0.1:15053"),
            v6: udp("[::1]:15053"),
        }
    }

    /// The next query, with its source and its resolver.
    fn query(&self, v4: bool) -> Option<(Vec<u8>, SocketAddr, SocketAddr)> {
        let mut bytes = [0; 512];
        let socket = if v4 { &self.v4 } else { &self.v6 };
        let (size, client) = socket.recv_from(&mut bytes).ok()?;
        let found = self.world.kernel.resolver_of(self.world.cookie, client);
        let resolver = found.unwrap().expect("a resolver");
        Some((bytes[..size].to_vec(), client, resolver))
    }

    /// Sends a reply.
    fn reply(&self, reply: &[u8], client: SocketAddr) {
        match reply_source(client) {
            Some(source) => send_from(&self.v4, source, reply, client),
            None if client.is_ipv4() => drop(self.v4.send_to(reply, client).unwrap()),
            None => drop(self.v6.send_to(reply, client).unwrap()),
        }
    }

    /// Expects that the next query is this one, for this resolver, and replies by repeating it.
    fn expect_query(&self, query: &[u8], resolver: SocketAddr) {
        let v4 = resolver.ip().to_canonical().is_ipv4();
        let (received, client, found) = self.query(v4).expect("captured");
        assert_eq!(received, query);
        assert_eq!(found.ip(), resolver.ip().to_canonical());
        assert_eq!(found.port(), resolver.port());
        self.reply(&received, client);
    }

    fn receives_nothing(&self) -> bool {
        self.query(true).is_none() && self.query(false).is_none()
    }
}

/// Sends a datagram with this source address.
fn send_from(socket: &UdpSocket, source: Ipv4Addr, bytes: &[u8], to: SocketAddr) {
    let info = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr {
            s_addr: u32::from(source).to_be(),
        },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let sent = sendmsg(
        socket.as_raw_fd(),
        &[io::IoSlice::new(bytes)],
        &[ControlMessage::Ipv4PacketInfo(&info)],
        MsgFlags::empty(),
        Some(&SockaddrStorage::from(to)),
    );
    assert_eq!(sent, Ok(bytes.len()));
}

/// An application's socket of the family of an address.
fn app(family: SocketAddr) -> Socket {
    let domain = Domain::for_address(family);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    let timeout = Some(Duration::from_millis(500));
    socket.set_read_timeout(timeout).unwrap();
    socket
}

/// A socket like that of musl's resolver: bound to the wildcard address, with a port that the kernel
/// chooses.
fn wildcard(v6: bool) -> Socket {
    let any = at(if v6 { "[::]:0" } else { "0.0.0.0:0" });
    let socket = app(any);
    socket.bind(&any.into()).unwrap();
    socket
}

/// The next reply that the application receives, and its source.
fn receive(socket: &Socket) -> io::Result<(Vec<u8>, SocketAddr)> {
    let mut bytes = [MaybeUninit::new(0); 512];
    let (size, from) = socket.recv_from(&mut bytes)?;
    let reply = bytes[..size].iter();
    // SAFETY: initialised above.
    let reply = reply.map(|byte| unsafe { byte.assume_init() }).collect();
    Ok((reply, from.as_socket().unwrap()))
}

fn peer(socket: &Socket) -> SocketAddr {
    socket.peer_addr().unwrap().as_socket().unwrap()
}

fn local_address(socket: &Socket) -> SocketAddr {
    socket.local_addr().unwrap().as_socket().unwrap()
}

/// Sends a query from a connected socket and expects the reply.
fn query_connected(proxy: &Proxy, socket: &Socket, resolver: SocketAddr) {
    socket.send(b"who?").unwrap();
    proxy.expect_query(b"who?", resolver);
    let (reply, from) = receive(socket).expect("a reply");
    assert_eq!((reply.as_slice(), from), (b"who?".as_slice(), resolver));
    assert_eq!(peer(socket), resolver);
}

#[test]
#[ignore = "needs root"]
fn a_connected_socket_receives_from_its_resolver() {
    in_namespace(|| {
        let proxy = Proxy::new();
        for resolver in RESOLVERS.map(at) {
            let socket = app(resolver);
            socket.connect(&resolver.into()).unwrap();
            let pod = if resolver.ip().to_canonical().is_ipv4() {
                POD4
            } else {
                POD6
            };
            assert_eq!(local_address(&socket).ip().to_canonical(), pod);
            assert!(local_address(&socket).port() >= 32768);
            query_connected(&proxy, &socket, resolver);
            query_connected(&proxy, &socket, resolver);
        }
    });
}

#[test]
#[ignore = "needs root"]
fn an_unconnected_socket_receives_from_the_queried_resolver() {
    in_namespace(|| {
        let proxy = Proxy::new();
        for resolver in RESOLVERS.map(at) {
            let fresh = app(resolver);
            let pod = app(resolver);
            let v6 = resolver.ip().to_canonical().is_ipv6();
            let mut address = SocketAddr::new(if v6 { POD6 } else { POD4 }, 0);
            if resolver.is_ipv6() && !v6 {
                address = at("[::ffff:10.9.0.1]:0");
            }
            pod.bind(&address.into()).unwrap();
            for socket in [fresh, wildcard(resolver.is_ipv6()), pod] {
                for query in [b"first".as_slice(), b"second"] {
                    socket.send_to(query, &resolver.into()).unwrap();
                    proxy.expect_query(query, resolver);
                    let (reply, from) = receive(&socket).expect("a reply");
                    assert_eq!((reply.as_slice(), from), (query, resolver));
                }
                assert!(socket.peer_addr().is_err());
            }
        }
    });
}

#[test]
#[ignore = "needs root"]
fn three_resolvers_of_one_socket_are_distinguished() {
    in_namespace(|| {
        let proxy = Proxy::new();
        let names = ["192.0.2.1:53", "192.0.2.2:53", "198.51.100.3:53"];
        let mapped = names.map(|name| format!("[::ffff:{}]:53", at(name).ip()));
        let mapped: [&str; 3] = [&mapped[0], &mapped[1], &mapped[2]];
        for (v6, resolvers) in [(false, names), (true, mapped)] {
            let socket = wildcard(v6);
            for resolver in resolvers.map(at) {
                socket.send_to(b"who?", &resolver.into()).unwrap();
            }
            let mut queries = Vec::new();
            for resolver in resolvers.map(at) {
                let (_, client, found) = proxy.query(true).unwrap();
                assert_eq!(found.ip(), resolver.ip().to_canonical());
                queries.push((client, resolver));
            }
            // Replies in another order.
            for (client, resolver) in queries.into_iter().rev() {
                proxy.reply(resolver.to_string().as_bytes(), client);
            }
            for resolver in resolvers.map(at).into_iter().rev() {
                let (reply, from) = receive(&socket).unwrap();
                assert_eq!(from, resolver);
                assert_eq!(reply, resolver.to_string().as_bytes());
            }
            // A reply from the proxy's own address appears to come from the last resolver.
            let client = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), local_address(&socket).port());
            proxy.v4.send_to(b"plain", client).unwrap();
            assert_eq!(receive(&socket).unwrap().1, at(resolvers[2]));
        }
    });
}

#[test]
#[ignore = "needs root"]
fn resolvers_that_cannot_be_distinguished_appear_as_the_last_one() {
    in_namespace(|| {
        let proxy = Proxy::new();
        let resolvers = ["[2001:db8::1]:53", "[2001:db8::2]:53", "[2001:db8::3]:53"].map(at);
        let socket = wildcard(true);
        for resolver in resolvers {
            socket.send_to(b"who?", &resolver.into()).unwrap();
        }
        for _ in resolvers {
            proxy.expect_query(b"who?", resolvers[2]);
            assert_eq!(receive(&socket).unwrap().1, resolvers[2]);
        }
    });
}

#[test]
#[ignore = "needs root"]
fn two_sockets_query_two_resolvers_at_once() {
    in_namespace(|| {
        let proxy = Proxy::new();
        let resolvers = ["192.0.2.1:53", "192.0.2.2:53"].map(at);
        let connected = resolvers.map(|resolver| {
            let socket = app(resolver);
            socket.connect(&resolver.into()).unwrap();
            socket
        });
        let free = resolvers.map(|_| wildcard(false));
        for (index, resolver) in resolvers.into_iter().enumerate() {
            connected[index].send(b"connected").unwrap();
            free[index].send_to(b"free", &resolver.into()).unwrap();
        }
        for resolver in resolvers {
            proxy.expect_query(b"connected", resolver);
            proxy.expect_query(b"free", resolver);
        }
        for (index, resolver) in resolvers.into_iter().enumerate() {
            assert_eq!(receive(&connected[index]).unwrap().1, resolver);
            assert_eq!(receive(&free[index]).unwrap().1, resolver);
        }
    });
}

/// `connect()` with AF_UNSPEC.
fn disconnect(socket: &Socket) {
    // SAFETY: all zero is AF_UNSPEC.
    let unspecified: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: a valid address of its own size.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const unspecified, 16) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[test]
#[ignore = "needs root"]
fn a_socket_can_be_connected_again() {
    in_namespace(|| {
        let proxy = Proxy::new();
        for pair in [
            ["192.0.2.1:53", "192.0.2.2:53"],
            ["[2001:db8::1]:53", "[2001:db8::2]:53"],
            ["[::ffff:192.0.2.1]:53", "[::ffff:192.0.2.2]:53"],
        ] {
            let [first, second] = pair.map(at);
            let socket = app(first);
            for resolver in [first, second, first] {
                socket.connect(&resolver.into()).unwrap();
                query_connected(&proxy, &socket, resolver);
            }
            disconnect(&socket);
            assert!(socket.peer_addr().is_err());
            socket.send_to(b"who?", &second.into()).unwrap();
            proxy.expect_query(b"who?", second);
            assert_eq!(receive(&socket).unwrap().1, second);
            socket.connect(&first.into()).unwrap();
            query_connected(&proxy, &socket, first);
        }
        // Another port is not captured: the socket keeps the pod's address and sends to the network.
        let socket = app(at("192.0.2.1:53"));
        socket.connect(&at("192.0.2.1:53").into()).unwrap();
        socket.connect(&at("192.0.2.9:123").into()).unwrap();
        assert_eq!(peer(&socket), at("192.0.2.9:123"));
        assert_eq!(local_address(&socket).ip(), POD4);
        socket.send(b"what time is it?").unwrap();
        assert!(proxy.receives_nothing());
    });
}

#[test]
#[ignore = "needs root"]
fn an_address_that_the_application_has_bound_stays() {
    in_namespace(|| {
        let proxy = Proxy::new();
        for (bound, resolver) in [
            ("0.0.0.0:5300", "192.0.2.1:53"),
            ("10.9.0.2:5301", "192.0.2.1:53"),
            ("[fd09::2]:5302", "[2001:db8::1]:53"),
            ("[::]:5303", "[::ffff:192.0.2.1]:53"),
        ] {
            let socket = app(at(bound));
            socket.bind(&at(bound).into()).unwrap();
            socket.connect(&at(resolver).into()).unwrap();
            assert_eq!(local_address(&socket).port(), at(bound).port());
            if !at(bound).ip().is_unspecified() {
                assert_eq!(local_address(&socket), at(bound));
            }
            query_connected(&proxy, &socket, at(resolver));
        }
        // An address without a port: the kernel would choose the port at connect.
        let socket = app(at("10.9.0.2:0"));
        let no_port = 24;
        set(&socket, libc::IPPROTO_IP, no_port, 1);
        socket.bind(&SocketAddr::new(OTHER4, 0).into()).unwrap();
        socket.connect(&at("192.0.2.1:53").into()).unwrap();
        assert_eq!(local_address(&socket).ip(), OTHER4);
        query_connected(&proxy, &socket, at("192.0.2.1:53"));
    });
}

#[test]
#[ignore = "needs root"]
fn an_address_of_ipv4_on_a_socket_of_ipv6() {
    in_namespace(|| {
        let proxy = Proxy::new();
        let socket = app(at("[::]:0"));
        let plain = at("192.0.2.1:53");
        let mapped = at("[::ffff:192.0.2.1]:53");
        socket.connect(&plain.into()).unwrap();
        query_connected(&proxy, &socket, mapped);
        let socket = wildcard(true);
        socket.send_to(b"who?", &plain.into()).unwrap();
        proxy.expect_query(b"who?", mapped);
        assert_eq!(receive(&socket).unwrap().1, mapped);
    });
}

#[test]
#[ignore = "needs root"]
fn a_socket_bound_to_a_device() {
    in_namespace(|| {
        let proxy = Proxy::new();
        let resolver = at("192.0.2.1:53");
        let socket = app(resolver);
        socket.bind_device(Some(DEVICE.as_bytes())).unwrap();
        socket.connect(&resolver.into()).unwrap();
        query_connected(&proxy, &socket, resolver);
        let socket = wildcard(false);
        socket.bind_device(Some(DEVICE.as_bytes())).unwrap();
        let first = socket.send_to(b"who?", &resolver.into());
        assert_eq!(first.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        socket.send_to(b"who?", &resolver.into()).unwrap();
        proxy.expect_query(b"who?", resolver);
        assert_eq!(receive(&socket).unwrap().1, resolver);
    });
}

#[test]
#[ignore = "needs root"]
fn queries_over_tcp_reach_the_dns_port() {
    in_namespace(|| {
        let proxy = Proxy::new();
        let listener = proxy.world.dns.as_ref().unwrap();
        for resolver in RESOLVERS.map(at) {
            let app = tcp(resolver.is_ipv4());
            app.connect(&resolver.into()).unwrap();
            let (stream, _) = accept(listener).expect("captured");
            let found = stream.local_addr().unwrap();
            assert_eq!(found.ip().to_canonical(), resolver.ip().to_canonical());
            assert_eq!(found.port(), 53);
            assert_eq!(peer(&app), resolver);
            assert!(!local_address(&app).ip().to_canonical().is_loopback());
        }
        let _app = dial(at("192.0.2.1:80")).unwrap();
        assert_eq!(proxy.world.captured().unwrap().1, at("192.0.2.1:80"));
    });
}

/// A DNS server in this namespace.
fn local_server(address: SocketAddr) -> UdpSocket {
    let server = UdpSocket::bind(address).unwrap();
    let timeout = Some(Duration::from_millis(500));
    server.set_read_timeout(timeout).unwrap();
    server
}

/// Sends queries from a connected and an unconnected socket, and expects that this server receives
/// them without capture.
fn expect_uncaptured(server: &UdpSocket, address: SocketAddr, prepare: impl Fn(&Socket)) {
    let connected = app(address);
    prepare(&connected);
    connected.connect(&address.into()).unwrap();
    connected.send(b"who?").unwrap();
    let free = app(address);
    prepare(&free);
    free.send_to(b"who?", &address.into()).unwrap();
    for socket in [connected, free] {
        let mut bytes = [0; 16];
        let (size, client) = server.recv_from(&mut bytes).expect("not captured");
        assert_eq!(client.port(), local_address(&socket).port());
        server.send_to(&bytes[..size], client).unwrap();
        assert_eq!(receive(&socket).unwrap().1, address);
    }
}

#[test]
#[ignore = "needs root"]
fn queries_to_the_pod_itself_are_not_captured() {
    in_namespace(|| {
        let proxy = Proxy::new();
        for address in ["127.0.0.53:53", "[::1]:53", "10.9.0.1:53", "[fd09::1]:53"] {
            let server = local_server(at(address));
            expect_uncaptured(&server, at(address), |_| {});
        }
        assert!(proxy.receives_nothing());
    });
}

#[test]
#[ignore = "needs root"]
fn datagrams_that_are_no_dns_query_are_not_captured() {
    in_namespace(|| {
        let proxy = Proxy::new();
        // Another port, of a server in this namespace whose address is not the pod's.
        for address in ["10.9.0.2:5353", "[fd09::2]:5353"] {
            let server = local_server(at(address));
            expect_uncaptured(&server, at(address), |_| {});
        }
        let socket = wildcard(false);
        socket.set_broadcast(true).unwrap();
        for address in ["224.0.0.251:53", "255.255.255.255:53"] {
            drop(socket.send_to(b"who?", &at(address).into()));
        }
        assert!(proxy.receives_nothing());
    });
}

#[test]
#[ignore = "needs root"]
fn exemptions_apply_to_dns() {
    in_namespace(|| {
        let world = World::with(|config| {
            config.exemptions.outbound_cidrs = vec!["10.9.0.2/32".parse().unwrap()];
        });
        let proxy = Proxy::of(world);
        expect_uncaptured(&local_server(at("10.9.0.2:53")), at("10.9.0.2:53"), |_| {});
        assert!(proxy.receives_nothing());
    });
}

#[test]
#[ignore = "needs root"]
fn the_proxys_own_queries_are_not_captured() {
    in_namespace(|| {
        let proxy = Proxy::new();
        for address in ["10.9.0.2:53", "[fd09::2]:53"] {
            let server = local_server(at(address));
            expect_uncaptured(&server, at(address), |socket| {
                socket.set_mark(MARK).unwrap();
            });
        }
        assert!(proxy.receives_nothing());
    });
}

#[test]
#[ignore = "needs root"]
fn a_pod_without_dns_capture_is_unaffected() {
    in_namespace(|| {
        let mut proxy = Proxy::new();
        let server = local_server(at("10.9.0.2:53"));
        let listener = proxy.world.dns.take();
        proxy.world.enroll();
        expect_uncaptured(&server, at("10.9.0.2:53"), |_| {});
        let _app = dial(at("192.0.2.1:53")).unwrap();
        assert_eq!(proxy.world.captured().unwrap().1, at("192.0.2.1:53"));
        proxy.world.dns = listener;
        proxy.world.enroll();
        let socket = wildcard(false);
        socket.send_to(b"who?", &at("10.9.0.2:53").into()).unwrap();
        proxy.expect_query(b"who?", at("10.9.0.2:53"));
        proxy.world.kernel.withdraw(proxy.world.cookie).unwrap();
        expect_uncaptured(&server, at("10.9.0.2:53"), |_| {});
        assert!(proxy.receives_nothing());
    });
}

#[test]
#[ignore = "needs root"]
fn another_namespace_is_unaffected() {
    in_namespace(|| {
        let proxy = Proxy::new();
        in_namespace(|| {
            let server = local_server(at("10.9.0.2:53"));
            expect_uncaptured(&server, at("10.9.0.2:53"), |_| {});
        });
        assert!(proxy.receives_nothing());
    });
}

#[test]
#[ignore = "needs root"]
fn without_the_proxy_queries_are_refused() {
    in_namespace(|| {
        let Proxy { mut world, v4, v6 } = Proxy::new();
        drop((v4, v6, world.dns.take()));
        for resolver in RESOLVERS.map(at) {
            let socket = app(resolver);
            socket.connect(&resolver.into()).unwrap();
            socket.send(b"who?").unwrap();
            let error = receive(&socket).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{resolver}");
        }
        assert_eq!(
            dial(at("192.0.2.53:53")).unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        drop(world);
    });
}

#[test]
#[ignore = "needs root"]
fn a_new_proxy_takes_over() {
    in_namespace(|| {
        let mut proxy = Proxy::new();
        let resolver = at("192.0.2.1:53");
        let socket = app(resolver);
        socket.connect(&resolver.into()).unwrap();
        query_connected(&proxy, &socket, resolver);
        proxy.world.kernel = Kernel::open(&config(proxy.world.directory.clone())).unwrap();
        query_connected(&proxy, &socket, resolver);
        let another = wildcard(false);
        another.send_to(b"who?", &resolver.into()).unwrap();
        proxy.expect_query(b"who?", resolver);
        assert_eq!(receive(&another).unwrap().1, resolver);
        // Pins of a version without DNS capture.
        let pins = proxy.world.pins();
        for name in ["query4", "query6", "reply4", "reply6"] {
            let link = super::super::sys::open_pin(&pins.join("links").join(name)).unwrap();
            super::super::sys::detach(std::os::fd::AsFd::as_fd(&link)).unwrap();
            std::fs::remove_file(pins.join("links").join(name)).unwrap();
        }
        std::fs::remove_file(pins.join("RESOLVERS")).unwrap();
        proxy.world.kernel = Kernel::open(&config(proxy.world.directory.clone())).unwrap();
        another.send_to(b"again?", &resolver.into()).unwrap();
        proxy.expect_query(b"again?", resolver);
        assert_eq!(receive(&another).unwrap().1, resolver);
    });
}

#[test]
#[ignore = "needs root"]
fn dns_programs_are_attached_only_if_a_pod_uses_them() {
    in_namespace(|| {
        let mut world = World::new();
        let links = world.pins().join("links");
        let attached =
            || ["query4", "query6", "reply4", "reply6"].map(|name| links.join(name).exists());
        assert_eq!(attached(), [false; 4]);
        world.dns = Some(listen_captured(&world.kernel, 15053));
        world.enroll();
        assert_eq!(attached(), [true; 4]);
        world.kernel = Kernel::open(&config(world.directory.clone())).unwrap();
        assert_eq!(attached(), [true; 4]);
        world.dns = None;
        world.enroll();
        world.kernel = Kernel::open(&config(world.directory.clone())).unwrap();
        assert_eq!(attached(), [false; 4]);
    });
}
