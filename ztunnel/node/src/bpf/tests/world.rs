//! The parts of these tests: a network namespace, a pod in it, the proxy's listeners, an
//! application's sockets.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use netlink_packet_route::link::LinkAttribute;
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};

use crate::pods::netlab::{add_address, add_default_route, index, set_link_up, veth};
use crate::pods::routing;

use super::super::{CaptureListeners, Config, Exemptions, Kernel, PodCapture, Ports};
use mesh::NetnsCookie;

/// The pod's addresses.
pub(super) const POD4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
pub(super) const POD6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1));
/// Addresses on the same device that are not the pod's: a client from outside.
pub(super) const OTHER4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2));
pub(super) const OTHER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2));
/// The device that has them.
pub(super) const DEVICE: &str = "pod0";
pub(super) const MARK: u32 = 1337;

/// An address and port.
pub(super) fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// Runs a function in a thread with a new network namespace that has the pod's device.
pub(super) fn in_namespace<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        set_up();
        run()
    });
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The mark of the proxy's deliveries.
pub(super) const DELIVERY_MARK: u32 = 0x111;

/// A pod in this thread's namespace, captured by programs with pins in a temporary directory.
pub(super) struct World {
    pub(super) kernel: Kernel,
    pub(super) cookie: NetnsCookie,
    pub(super) directory: PathBuf,
    pub(super) inbound: TcpListener,
    /// For captured connections of both families; none after the proxy's death.
    pub(super) outbound: Option<TcpListener>,
    /// For captured connections to resolvers, if the next enrolment captures DNS.
    pub(super) dns: Option<TcpListener>,
    netns: File,
    temporary: Option<tempfile::TempDir>,
}

impl World {
    /// A captured pod.
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    /// As [`Self::new`], with other settings.
    pub(super) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("pins");
        let mut config = config(directory.clone());
        change(&mut config);
        let kernel = Kernel::open(&config).unwrap();
        let world = Self {
            cookie: this_namespace(),
            directory,
            inbound: listen(at("[::]:15006")),
            outbound: Some(listen_captured(&kernel, 15001)),
            dns: None,
            kernel,
            netns: File::open("/proc/thread-self/ns/net").unwrap(),
            temporary: Some(temporary),
        };
        world.enroll();
        world
    }

    /// Enrols the pod with its own listener.
    pub(super) fn enroll(&self) {
        self.enroll_with(&[POD4, POD6], self.inbound.as_fd());
    }

    /// Enrols the pod.
    pub(super) fn enroll_with(&self, addresses: &[IpAddr], inbound: BorrowedFd<'_>) {
        routing::prepare_delivery().unwrap();
        routing::prepare_capture(addresses, routing::Existing::Replace).unwrap();
        let outbound = self.outbound.as_ref().unwrap();
        let pod = PodCapture {
            cookie: self.cookie,
            netns: self.netns.as_fd(),
            addresses,
            listeners: CaptureListeners {
                inbound,
                outbound: outbound.as_fd(),
                dns: self.dns.as_ref().map(TcpListener::as_fd),
            },
        };
        self.kernel.enroll(&pod).unwrap();
    }

    /// The next captured connection and its original destination. None: no connection arrived
    /// within half a second.
    pub(super) fn captured(&self) -> Option<(TcpStream, SocketAddr)> {
        let (stream, _) = accept(self.outbound.as_ref()?)?;
        let dialled = stream.local_addr().unwrap();
        let dialled = SocketAddr::new(dialled.ip().to_canonical(), dialled.port());
        Some((stream, dialled))
    }

    /// Where the pins are.
    pub(super) fn pins(&self) -> PathBuf {
        let layout = ztunnel_ebpf_types::LAYOUT;
        self.directory.join(format!("v{layout}"))
    }

    /// Ends like a killed proxy: closes all descriptors and leaves the pins, in the returned
    /// directory.
    pub(super) fn leave(mut self) -> tempfile::TempDir {
        self.temporary.take().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.temporary.is_some() {
            Kernel::remove_pins(&self.directory).unwrap();
        }
    }
}

/// The configuration of a proxy with these pins.
pub(super) fn config(directory: PathBuf) -> Config {
    Config {
        directory,
        cgroup: None,
        mark: MARK,
        exemptions: Exemptions::default(),
        ports: Ports::default(),
        max_entries: 1024,
        delivery_mark: DELIVERY_MARK,
    }
}

/// This thread's namespace.
pub(super) fn this_namespace() -> NetnsCookie {
    super::super::netns_cookie(tcp(true).as_fd()).unwrap()
}

/// A TCP socket of a family.
pub(super) fn tcp(v4: bool) -> Socket {
    let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap()
}

/// A listener that several sockets may share.
pub(super) fn listen(address: SocketAddr) -> TcpListener {
    let socket = tcp(address.is_ipv4());
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(false).unwrap();
    }
    socket.bind(&address.into()).unwrap();
    socket.listen(128).unwrap();
    socket.into()
}

/// The proxy's listener for captured connections.
pub(super) fn listen_captured(kernel: &Kernel, port: u16) -> TcpListener {
    let mark = |socket: BorrowedFd<'_>, role| kernel.mark_listener(socket, role);
    crate::pods::listen_captured(true, port, &mark).unwrap()
}

/// The next connection, if one arrives within half a second.
pub(super) fn accept(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    let mut poll = libc::pollfd {
        fd: listener.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid entry.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 500) };
    (ready == 1).then(|| listener.accept().unwrap())
}

/// An application's connection, with a short timeout.
pub(super) fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&address, Duration::from_secs(2))
}

/// Disconnects a socket: `connect()` to an address of no family.
pub(super) fn disconnect(socket: &Socket) {
    let unspecified = libc::sockaddr {
        sa_family: 0,
        sa_data: [0; 14],
    };
    // SAFETY: a valid address of its own size.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const unspecified, 16) };
    assert_eq!(result, 0);
}

/// Sets an int option.
pub(super) fn set(socket: &impl std::os::fd::AsRawFd, level: i32, name: i32, value: i32) {
    // SAFETY: the option is an int, and the size says so.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            4,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Brings up loopback and the pod's device with its addresses, and adds default routes through it.
fn set_up() {
    for file in ["all", "default"] {
        let file = format!("/proc/sys/net/ipv6/conf/{file}/accept_dad");
        std::fs::write(file, "0").unwrap();
    }
    set_link_up(1);
    veth(DEVICE, vec![LinkAttribute::IfName("far0".into())]);
    let (pod, far) = (index(DEVICE), index("far0"));
    set_link_up(pod);
    set_link_up(far);
    for address in [POD4, OTHER4, POD6, OTHER6] {
        add_address(pod, address);
    }
    for gateway in ["10.9.0.99", "fd09::99"] {
        add_default_route(pod, gateway.parse().unwrap());
    }
}

/// Counts the packets that leave the pod.
pub(super) struct Wire {
    socket: Socket,
}

impl Wire {
    /// Starts counting.
    pub(super) fn tap() -> Self {
        // Protocol 0 receives nothing until the socket is bound to a device and to all protocols.
        let socket = Socket::new(Domain::PACKET, Type::from(libc::SOCK_DGRAM), None).unwrap();
        let address = libc::sockaddr_ll {
            sll_family: 17,
            sll_protocol: 3_u16.to_be(),
            sll_ifindex: index("far0").cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let size = u32::try_from(size_of_val(&address)).unwrap();
        // SAFETY: a valid address of its own size.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size,
            )
        };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        socket.set_nonblocking(true).unwrap();
        Self { socket }
    }

    /// How many TCP packets have left since the last call.
    pub(super) fn packets(&mut self) -> usize {
        use std::io::Read as _;
        let mut buffer = [0; 2048];
        let mut count = 0;
        while let Ok(size) = self.socket.read(&mut buffer) {
            let packet = &buffer[..size];
            let protocol = match packet.first().map(|first| first >> 4) {
                Some(4) => packet.get(9),
                Some(6) => packet.get(6),
                _ => None,
            };
            if protocol == Some(&6) {
                count += 1;
            }
        }
        count
    }
}
