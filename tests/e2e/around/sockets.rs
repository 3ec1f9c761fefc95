//! Unusual sockets and system calls.
#![allow(
    unsafe_code,
    reason = "io_uring and poll take addresses of the caller's memory"
)]

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_lanes;

use super::{Heard, Promise, ask_over, attempt, attempt_in, request};
use crate::ends::canonical;

/// The mark of the proxy's own sockets (`capture.mark`).
const PROXY_MARK: u32 = 1337;
/// Client and server of TCP Fast Open, cookies or not, on every listener
/// (Documentation/networking/ip-sysctl.rst).
const FAST_OPEN: &str = "1543";

fn tcp(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))
}

fn mptcp(domain: Domain) -> io::Result<Socket> {
    Socket::new(
        domain,
        Type::STREAM,
        Some(Protocol::from(libc::IPPROTO_MPTCP)),
    )
}

fn ask(socket: Socket) -> io::Result<Heard> {
    ask_over(&TcpStream::from(socket), request().as_bytes())
}

on_lanes!(a_connect_over_io_uring: tunnel, direct);
fn a_connect_over_io_uring(lane: Lane) {
    attempt(lane, Promise::OnLane, |to| {
        let socket = tcp(to)?;
        let address = SockAddr::from(to);
        let mut ring = io_uring::IoUring::new(4)?;
        let connect = io_uring::opcode::Connect::new(
            io_uring::types::Fd(socket.as_raw_fd()),
            address.as_ptr().cast(),
            address.len(),
        );
        // SAFETY: socket and address live until the request has completed.
        unsafe { ring.submission().push(&connect.build()) }.map_err(io::Error::other)?;
        ring.submit_and_wait(1)?;
        let result = ring.completion().next().unwrap().result();
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        ask(socket)
    });
}

on_lanes!(fast_open_with_data_in_the_first_packet: tunnel, direct);
fn fast_open_with_data_in_the_first_packet(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    for pod in [scene.client(), scene.server()] {
        pod.enter(|| fs::write("/proc/sys/net/ipv4/tcp_fastopen", FAST_OPEN))
            .unwrap();
    }
    let _mesh = scene.mesh().start().unwrap();
    // Twice: the second time the cookie is known, and the data is accepted with the SYN.
    for _ in 0..2 {
        attempt_in(&scene, Promise::OnLane, |to| {
            let socket = tcp(to)?;
            let request = request();
            let sent =
                socket.send_to_with_flags(request.as_bytes(), &to.into(), libc::MSG_FASTOPEN)?;
            ask_over(&socket.into(), &request.as_bytes()[sent..])
        });
        attempt_in(&scene, Promise::OnLane, |to| {
            let socket = tcp(to)?;
            setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?;
            socket.connect(&to.into())?;
            ask(socket)
        });
    }
}

on_lanes!(a_multipath_client: tunnel, direct);
fn a_multipath_client(lane: Lane) {
    attempt(lane, Promise::OnLaneOrRefused, |to| {
        let socket = mptcp(Domain::for_address(to))?;
        socket.connect(&to.into())?;
        ask(socket)
    });
}

on_lanes!(a_multipath_server_receives: tunnel, direct);
/// Go's servers listen so by default.
fn a_multipath_server_receives(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let (client, server) = (scene.client(), scene.server());
    let listener: std::net::TcpListener = server.enter(|| {
        let socket = mptcp(Domain::IPV6).unwrap();
        socket.set_only_v6(false).unwrap();
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 7070);
        socket.bind(&any.into()).unwrap();
        socket.listen(16).unwrap();
        socket.into()
    });
    for family in Family::BOTH {
        let to = server.at(family, 7070);
        let (mut near, mut far) = scene.connect(to, &listener).unwrap();
        assert_eq!(
            canonical(far.peer_addr().unwrap()).ip(),
            client.address(family)
        );
        near.write_all(b"there").unwrap();
        let mut heard = [0; 5];
        far.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"there");
        far.write_all(b"back").unwrap();
        let mut heard = [0; 4];
        near.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"back");
    }
}

on_lanes!(a_socket_that_was_bound: tunnel, direct);
fn a_socket_that_was_bound(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let _mesh = scene.mesh().start().unwrap();
    let client = scene.client();
    let (any4, any6) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into());
    for own in [[any4, any6], [client.v4.into(), client.v6.into()]] {
        attempt_in(&scene, Promise::OnLane, |to| {
            let socket = tcp(to)?;
            socket.bind(&SocketAddr::new(own[usize::from(to.is_ipv6())], 0).into())?;
            socket.connect(&to.into())?;
            ask(socket)
        });
    }
}

fn wait_until_writable(socket: &Socket) {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one entry, as the count says.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 30_000) };
    assert_eq!(ready, 1);
}

on_lanes!(a_connect_that_does_not_block: tunnel, direct);
fn a_connect_that_does_not_block(lane: Lane) {
    attempt(lane, Promise::OnLane, |to| {
        let socket = tcp(to)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _under_way_or_done => {}
        }
        wait_until_writable(&socket);
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        socket.set_nonblocking(false)?;
        ask(socket)
    });
}

on_lanes!(a_socket_that_was_bound_to_the_device_that_leads_out: tunnel, direct);
/// Such a socket could not be stopped later, so it is never direct.
fn a_socket_that_was_bound_to_the_device_that_leads_out(lane: Lane) {
    attempt(lane, Promise::Carried, |to| {
        let socket = tcp(to)?;
        socket.bind_device(Some(b"eth0"))?;
        socket.connect(&to.into())?;
        ask(socket)
    });
}

on_lanes!(an_application_that_sets_the_proxys_mark: tunnel, direct);
fn an_application_that_sets_the_proxys_mark(lane: Lane) {
    attempt(lane, Promise::OnLane, |to| {
        let socket = tcp(to)?;
        socket.set_mark(PROXY_MARK)?;
        socket.connect(&to.into())?;
        ask(socket)
    });
}
