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
use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_paths;

use super::{Expectation, Response, attempt, attempt_in, request, request_over};
use crate::connections::canonical;

/// The mark of the proxy's own sockets (`capture.mark`).
const PROXY_MARK: u32 = 1337;
/// TCP Fast Open for clients and servers, with and without cookies, on every listener
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

fn send_request(socket: Socket) -> io::Result<Response> {
    request_over(&TcpStream::from(socket), request().as_bytes())
}

on_paths!(a_connect_over_io_uring_is_captured: tunnel, direct);
fn a_connect_over_io_uring_is_captured(data_path: DataPath) {
    attempt(data_path, Expectation::OnPath, |to| {
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
        send_request(socket)
    });
}

on_paths!(fast_open_with_data_in_the_syn_is_captured: tunnel, direct);
fn fast_open_with_data_in_the_syn_is_captured(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    for pod in [topology.client(), topology.server()] {
        pod.enter(|| fs::write("/proc/sys/net/ipv4/tcp_fastopen", FAST_OPEN))
            .unwrap();
    }
    let _mesh = topology.mesh().start().unwrap();
    // Twice: the second time the client has the cookie, and the data is accepted with the SYN.
    for _ in 0..2 {
        attempt_in(&topology, Expectation::OnPath, |to| {
            let socket = tcp(to)?;
            let request = request();
            let sent =
                socket.send_to_with_flags(request.as_bytes(), &to.into(), libc::MSG_FASTOPEN)?;
            request_over(&socket.into(), &request.as_bytes()[sent..])
        });
        attempt_in(&topology, Expectation::OnPath, |to| {
            let socket = tcp(to)?;
            setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?;
            socket.connect(&to.into())?;
            send_request(socket)
        });
    }
}

on_paths!(a_multipath_client_is_captured_or_refused: tunnel, direct);
fn a_multipath_client_is_captured_or_refused(data_path: DataPath) {
    attempt(data_path, Expectation::OnPathOrRefused, |to| {
        let socket = mptcp(Domain::for_address(to))?;
        socket.connect(&to.into())?;
        send_request(socket)
    });
}

on_paths!(a_multipath_server_receives_connections: tunnel, direct);
/// Servers in Go listen with MPTCP by default.
fn a_multipath_server_receives_connections(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let (client, server) = (topology.client(), topology.server());
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
        let (mut near, mut far) = topology.connect(to, &listener).unwrap();
        assert_eq!(
            canonical(far.peer_addr().unwrap()).ip(),
            client.address(family)
        );
        near.write_all(b"hello").unwrap();
        let mut received = [0; 5];
        far.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"hello");
        far.write_all(b"echo").unwrap();
        let mut received = [0; 4];
        near.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"echo");
    }
}

on_paths!(a_bound_socket_is_captured: tunnel, direct);
fn a_bound_socket_is_captured(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let _mesh = topology.mesh().start().unwrap();
    let client = topology.client();
    let (any4, any6) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into());
    for own in [[any4, any6], [client.v4.into(), client.v6.into()]] {
        attempt_in(&topology, Expectation::OnPath, |to| {
            let socket = tcp(to)?;
            socket.bind(&SocketAddr::new(own[usize::from(to.is_ipv6())], 0).into())?;
            socket.connect(&to.into())?;
            send_request(socket)
        });
    }
}

fn wait_until_writable(socket: &Socket) {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: the count is one, the number of entries.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 30_000) };
    assert_eq!(ready, 1);
}

on_paths!(a_nonblocking_connect_is_captured: tunnel, direct);
fn a_nonblocking_connect_is_captured(data_path: DataPath) {
    attempt(data_path, Expectation::OnPath, |to| {
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
        send_request(socket)
    });
}

on_paths!(a_socket_bound_to_the_outgoing_device_goes_through_the_proxy: tunnel, direct);
/// The kernel cannot stop such a socket later, so it never takes the fast path.
fn a_socket_bound_to_the_outgoing_device_goes_through_the_proxy(data_path: DataPath) {
    attempt(data_path, Expectation::ThroughProxy, |to| {
        let socket = tcp(to)?;
        socket.bind_device(Some(b"eth0"))?;
        socket.connect(&to.into())?;
        send_request(socket)
    });
}

on_paths!(a_socket_with_the_proxys_mark_is_captured: tunnel, direct);
fn a_socket_with_the_proxys_mark_is_captured(data_path: DataPath) {
    attempt(data_path, Expectation::OnPath, |to| {
        let socket = tcp(to)?;
        socket.set_mark(PROXY_MARK)?;
        socket.connect(&to.into())?;
        send_request(socket)
    });
}
