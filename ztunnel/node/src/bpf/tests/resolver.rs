//! DNS: what a pod asks of its resolvers reaches the proxy, which knows who was asked, and the
//! application sees the answer come from there.

mod cost;
mod library;

use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};

use super::super::{Kernel, reply_source};
use super::world::{
    DEVICE, MARK, OTHER4, POD4, POD6, World, accept, at, config, dial, in_namespace, listen, set,
    tcp,
};

/// A resolver of each kind, and the family of the datagram that asks it.
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
    stream: TcpListener,
}

impl Proxy {
    fn new() -> Self {
        Self::of(World::new())
    }

    fn of(mut world: World) -> Self {
        world.dns = true;
        world.enroll();
        let udp = |address| {
            let socket = UdpSocket::bind(at(address)).unwrap();
            let patience = Some(Duration::from_millis(300));
            socket.set_read_timeout(patience).unwrap();
            socket
        };
        Self {
            world,
            v4: udp("127.0.0.1:15053"),
            v6: udp("[::1]:15053"),
            stream: listen(at("127.0.0.1:15053")),
        }
    }

    /// The next question, with the resolver that it is for.
    fn question(&self, v4: bool) -> Option<(Vec<u8>, SocketAddr, SocketAddr)> {
        let mut bytes = [0; 512];
        let socket = if v4 { &self.v4 } else { &self.v6 };
        let (size, client) = socket.recv_from(&mut bytes).ok()?;
        let found = self.world.kernel.resolver_of(self.world.cookie, client);
        let resolver = found.unwrap().expect("the proxy knows the resolver");
        Some((bytes[..size].to_vec(), client, resolver))
    }

    /// Answers a question by repeating it.
    fn answer(&self, question: &[u8], client: SocketAddr) {
        match reply_source(client) {
            Some(source) => send_from(&self.v4, source, question, client),
            None if client.is_ipv4() => drop(self.v4.send_to(question, client).unwrap()),
            None => drop(self.v6.send_to(question, client).unwrap()),
        }
    }

    /// The next question is this one, for this resolver; it is answered.
    fn serves(&self, question: &[u8], resolver: SocketAddr) {
        let v4 = resolver.ip().to_canonical().is_ipv4();
        let (asked, client, found) = self.question(v4).expect("captured");
        assert_eq!(asked, question);
        assert_eq!(found.ip(), resolver.ip().to_canonical());
        assert_eq!(found.port(), resolver.port());
        self.answer(&asked, client);
    }

    fn is_silent(&self) -> bool {
        self.question(true).is_none() && self.question(false).is_none()
    }
}

/// Sends with a source of the proxy's choice.
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
    let patience = Some(Duration::from_millis(500));
    socket.set_read_timeout(patience).unwrap();
    socket
}

/// As musl's resolver does: bound to the wildcard, whose port the kernel chooses.
fn wildcard(v6: bool) -> Socket {
    let any = at(if v6 { "[::]:0" } else { "0.0.0.0:0" });
    let socket = app(any);
    socket.bind(&any.into()).unwrap();
    socket
}

/// An answer, and where the application is told that it comes from.
fn heard(socket: &Socket) -> io::Result<(Vec<u8>, SocketAddr)> {
    let mut bytes = [MaybeUninit::new(0); 512];
    let (size, from) = socket.recv_from(&mut bytes)?;
    let answer = bytes[..size].iter();
    // SAFETY: initialised above.
    let answer = answer.map(|byte| unsafe { byte.assume_init() }).collect();
    Ok((answer, from.as_socket().unwrap()))
}

fn peer(socket: &Socket) -> SocketAddr {
    socket.peer_addr().unwrap().as_socket().unwrap()
}

fn own(socket: &Socket) -> SocketAddr {
    socket.local_addr().unwrap().as_socket().unwrap()
}

/// Without a resolver's address, as a connected socket sends.
fn ask_connected(proxy: &Proxy, socket: &Socket, resolver: SocketAddr) {
    socket.send(b"who?").unwrap();
    proxy.serves(b"who?", resolver);
    let (answer, from) = heard(socket).expect("answered");
    assert_eq!((answer.as_slice(), from), (b"who?".as_slice(), resolver));
    assert_eq!(peer(socket), resolver);
}

#[test]
#[ignore = "needs root"]
fn a_connected_socket_hears_from_its_resolver() {
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
            assert_eq!(own(&socket).ip().to_canonical(), pod);
            assert!(own(&socket).port() >= 32768);
            ask_connected(&proxy, &socket, resolver);
            ask_connected(&proxy, &socket, resolver);
        }
    });
}

#[test]
#[ignore = "needs root"]
fn a_socket_that_is_not_connected_hears_from_whom_it_asked() {
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
                for question in [b"first".as_slice(), b"second"] {
                    socket.send_to(question, &resolver.into()).unwrap();
                    proxy.serves(question, resolver);
                    let (answer, from) = heard(&socket).expect("answered");
                    assert_eq!((answer.as_slice(), from), (question, resolver));
                }
                assert!(socket.peer_addr().is_err());
            }
        }
    });
}

#[test]
#[ignore = "needs root"]
fn three_resolvers_of_one_socket_are_told_apart() {
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
            let mut on_demand = Vec::new();
            for resolver in resolvers.map(at) {
                let (_, client, found) = proxy.question(true).unwrap();
                assert_eq!(found.ip(), resolver.ip().to_canonical());
                on_demand.push((client, resolver));
            }
            // Answered in another order.
            for (client, resolver) in on_demand.into_iter().rev() {
                proxy.answer(resolver.to_string().as_bytes(), client);
            }
            for resolver in resolvers.map(at).into_iter().rev() {
                let (answer, from) = heard(&socket).unwrap();
                assert_eq!(from, resolver);
                assert_eq!(answer, resolver.to_string().as_bytes());
            }
            // A proxy that answers from its own address: still one of those that were asked.
            let client = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), own(&socket).port());
            proxy.v4.send_to(b"plain", client).unwrap();
            assert_eq!(heard(&socket).unwrap().1, at(resolvers[2]));
        }
    });
}

#[test]
#[ignore = "needs root"]
fn where_they_cannot_be_told_apart_the_last_one_answers() {
    in_namespace(|| {
        let proxy = Proxy::new();
        let resolvers = ["[2001:db8::1]:53", "[2001:db8::2]:53", "[2001:db8::3]:53"].map(at);
        let socket = wildcard(true);
        for resolver in resolvers {
            socket.send_to(b"who?", &resolver.into()).unwrap();
        }
        for _ in resolvers {
            proxy.serves(b"who?", resolvers[2]);
            assert_eq!(heard(&socket).unwrap().1, resolvers[2]);
        }
    });
}

#[test]
#[ignore = "needs root"]
fn two_sockets_ask_two_resolvers_at_once() {
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
            proxy.serves(b"connected", resolver);
            proxy.serves(b"free", resolver);
        }
        for (index, resolver) in resolvers.into_iter().enumerate() {
            assert_eq!(heard(&connected[index]).unwrap().1, resolver);
            assert_eq!(heard(&free[index]).unwrap().1, resolver);
        }
    });
}

/// `connect()` with AF_UNSPEC.
fn disconnect(socket: &Socket) {
    // SAFETY: all zero is AF_UNSPEC.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: a valid address of its own size.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, 16) };
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
                ask_connected(&proxy, &socket, resolver);
            }
            disconnect(&socket);
            assert!(socket.peer_addr().is_err());
            socket.send_to(b"who?", &second.into()).unwrap();
            proxy.serves(b"who?", second);
            assert_eq!(heard(&socket).unwrap().1, second);
            socket.connect(&first.into()).unwrap();
            ask_connected(&proxy, &socket, first);
        }
        // Another port is another matter: the wire, and the pod's own address.
        let socket = app(at("192.0.2.1:53"));
        socket.connect(&at("192.0.2.1:53").into()).unwrap();
        socket.connect(&at("192.0.2.9:123").into()).unwrap();
        assert_eq!(peer(&socket), at("192.0.2.9:123"));
        assert_eq!(own(&socket).ip(), POD4);
        socket.send(b"what time is it?").unwrap();
        assert!(proxy.is_silent());
    });
}

#[test]
#[ignore = "needs root"]
fn what_the_application_has_bound_stays() {
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
            assert_eq!(own(&socket).port(), at(bound).port());
            if !at(bound).ip().is_unspecified() {
                assert_eq!(own(&socket), at(bound));
            }
            ask_connected(&proxy, &socket, at(resolver));
        }
        // An address without a port: the kernel would choose the port when connecting.
        let socket = app(at("10.9.0.2:0"));
        let no_port = 24;
        set(&socket, libc::IPPROTO_IP, no_port, 1);
        socket.bind(&SocketAddr::new(OTHER4, 0).into()).unwrap();
        socket.connect(&at("192.0.2.1:53").into()).unwrap();
        assert_eq!(own(&socket).ip(), OTHER4);
        ask_connected(&proxy, &socket, at("192.0.2.1:53"));
    });
}

#[test]
#[ignore = "needs root"]
fn an_address_of_ipv4_on_a_socket_of_ipv6() {
    in_namespace(|| {
        let proxy = Proxy::new();
        let socket = app(at("[::]:0"));
        let plain = at("192.0.2.1:53");
        let told = at("[::ffff:192.0.2.1]:53");
        socket.connect(&plain.into()).unwrap();
        ask_connected(&proxy, &socket, told);
        let socket = wildcard(true);
        socket.send_to(b"who?", &plain.into()).unwrap();
        proxy.serves(b"who?", told);
        assert_eq!(heard(&socket).unwrap().1, told);
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
        ask_connected(&proxy, &socket, resolver);
        let socket = wildcard(false);
        socket.bind_device(Some(DEVICE.as_bytes())).unwrap();
        let first = socket.send_to(b"who?", &resolver.into());
        assert_eq!(first.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        socket.send_to(b"who?", &resolver.into()).unwrap();
        proxy.serves(b"who?", resolver);
        assert_eq!(heard(&socket).unwrap().1, resolver);
    });
}

#[test]
#[ignore = "needs root"]
fn questions_over_tcp_reach_the_dns_port() {
    in_namespace(|| {
        let proxy = Proxy::new();
        let stream6 = listen(at("[::1]:15053"));
        for resolver in RESOLVERS.map(at) {
            let listener = if resolver.ip().to_canonical().is_ipv4() {
                &proxy.stream
            } else {
                &stream6
            };
            let app = tcp(resolver.is_ipv4());
            app.connect(&resolver.into()).unwrap();
            let (_stream, client) = accept(listener).expect("captured");
            let kernel = &proxy.world.kernel;
            let found = kernel.original_destination(proxy.world.cookie, client);
            let found = found.unwrap().unwrap().destination;
            assert_eq!(found.ip(), resolver.ip().to_canonical());
            assert_eq!(found.port(), 53);
            assert_eq!(peer(&app), resolver);
            assert!(!own(&app).ip().to_canonical().is_loopback());
        }
        let _app = dial(at("192.0.2.1:80")).unwrap();
        assert_eq!(proxy.world.captured(true).unwrap().1, at("192.0.2.1:80"));
    });
}

/// A server that answers a datagram and says that it did.
fn local(address: SocketAddr) -> UdpSocket {
    let server = UdpSocket::bind(address).unwrap();
    let patience = Some(Duration::from_millis(500));
    server.set_read_timeout(patience).unwrap();
    server
}

/// Asks in both ways, and this server gets the questions and answers them itself.
fn goes_to(server: &UdpSocket, address: SocketAddr, prepare: impl Fn(&Socket)) {
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
        assert_eq!(client.port(), own(&socket).port());
        server.send_to(&bytes[..size], client).unwrap();
        assert_eq!(heard(&socket).unwrap().1, address);
    }
}

#[test]
#[ignore = "needs root"]
fn the_pod_itself_is_left_alone() {
    in_namespace(|| {
        let proxy = Proxy::new();
        for address in ["127.0.0.53:53", "[::1]:53", "10.9.0.1:53", "[fd09::1]:53"] {
            let server = local(at(address));
            goes_to(&server, at(address), |_| {});
        }
        assert!(proxy.is_silent());
    });
}

#[test]
#[ignore = "needs root"]
fn what_is_no_question_to_a_resolver_is_left_alone() {
    in_namespace(|| {
        let proxy = Proxy::new();
        // Another port, of a server in this namespace whose address is not the pod's.
        for address in ["10.9.0.2:5353", "[fd09::2]:5353"] {
            let server = local(at(address));
            goes_to(&server, at(address), |_| {});
        }
        let socket = wildcard(false);
        socket.set_broadcast(true).unwrap();
        for address in ["224.0.0.251:53", "255.255.255.255:53"] {
            drop(socket.send_to(b"who?", &at(address).into()));
        }
        assert!(proxy.is_silent());
    });
}

#[test]
#[ignore = "needs root"]
fn exemptions_hold_for_dns() {
    in_namespace(|| {
        let world = World::with(|config| {
            config.exemptions.outbound_cidrs = vec!["10.9.0.2/32".parse().unwrap()];
        });
        let proxy = Proxy::of(world);
        goes_to(&local(at("10.9.0.2:53")), at("10.9.0.2:53"), |_| {});
        assert!(proxy.is_silent());
    });
}

#[test]
#[ignore = "needs root"]
fn the_proxys_own_questions_are_left_alone() {
    in_namespace(|| {
        let proxy = Proxy::new();
        for address in ["10.9.0.2:53", "[fd09::2]:53"] {
            let server = local(at(address));
            goes_to(&server, at(address), |socket| {
                socket.set_mark(MARK).unwrap();
            });
        }
        assert!(proxy.is_silent());
    });
}

#[test]
#[ignore = "needs root"]
fn a_pod_without_dns_capture_is_left_alone() {
    in_namespace(|| {
        let mut proxy = Proxy::new();
        let server = local(at("10.9.0.2:53"));
        proxy.world.dns = false;
        proxy.world.enroll();
        goes_to(&server, at("10.9.0.2:53"), |_| {});
        let _app = dial(at("192.0.2.1:53")).unwrap();
        assert_eq!(proxy.world.captured(true).unwrap().1, at("192.0.2.1:53"));
        proxy.world.dns = true;
        proxy.world.enroll();
        let socket = wildcard(false);
        socket.send_to(b"who?", &at("10.9.0.2:53").into()).unwrap();
        proxy.serves(b"who?", at("10.9.0.2:53"));
        proxy.world.kernel.withdraw(proxy.world.cookie).unwrap();
        goes_to(&server, at("10.9.0.2:53"), |_| {});
        assert!(proxy.is_silent());
    });
}

#[test]
#[ignore = "needs root"]
fn another_namespace_is_not_touched() {
    in_namespace(|| {
        let proxy = Proxy::new();
        in_namespace(|| {
            let server = local(at("10.9.0.2:53"));
            goes_to(&server, at("10.9.0.2:53"), |_| {});
        });
        assert!(proxy.is_silent());
    });
}

#[test]
#[ignore = "needs root"]
fn without_the_proxy_questions_are_refused() {
    in_namespace(|| {
        let Proxy { world, v4, v6, .. } = Proxy::new();
        drop((v4, v6));
        for resolver in RESOLVERS.map(at) {
            let socket = app(resolver);
            socket.connect(&resolver.into()).unwrap();
            socket.send(b"who?").unwrap();
            let error = heard(&socket).unwrap_err();
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
        ask_connected(&proxy, &socket, resolver);
        proxy.world.kernel = Kernel::open(&config(proxy.world.directory.clone())).unwrap();
        ask_connected(&proxy, &socket, resolver);
        let another = wildcard(false);
        another.send_to(b"who?", &resolver.into()).unwrap();
        proxy.serves(b"who?", resolver);
        assert_eq!(heard(&another).unwrap().1, resolver);
        // Pins of a version that knew nothing of DNS.
        let pins = proxy.world.pins();
        for name in ["ask4", "ask6", "answer4", "answer6"] {
            let link = super::super::sys::open_pin(&pins.join("links").join(name)).unwrap();
            super::super::sys::detach(std::os::fd::AsFd::as_fd(&link)).unwrap();
            std::fs::remove_file(pins.join("links").join(name)).unwrap();
        }
        std::fs::remove_file(pins.join("RESOLVERS")).unwrap();
        proxy.world.kernel = Kernel::open(&config(proxy.world.directory.clone())).unwrap();
        another.send_to(b"again?", &resolver.into()).unwrap();
        proxy.serves(b"again?", resolver);
        assert_eq!(heard(&another).unwrap().1, resolver);
    });
}

#[test]
#[ignore = "needs root"]
fn datagrams_pass_no_program_while_nobody_wants_it() {
    in_namespace(|| {
        let mut world = World::new();
        let links = world.pins().join("links");
        let attached =
            || ["ask4", "ask6", "answer4", "answer6"].map(|name| links.join(name).exists());
        assert_eq!(attached(), [false; 4]);
        world.dns = true;
        world.enroll();
        assert_eq!(attached(), [true; 4]);
        world.kernel = Kernel::open(&config(world.directory.clone())).unwrap();
        assert_eq!(attached(), [true; 4]);
        world.dns = false;
        world.enroll();
        world.kernel = Kernel::open(&config(world.directory.clone())).unwrap();
        assert_eq!(attached(), [false; 4]);
    });
}
