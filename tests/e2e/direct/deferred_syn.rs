//! An application that defers its SYN until after a deny cannot bypass the deny: the decision of
//! `connect()` is checked again when the SYN is sent.

use std::fs;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::{Family, Host};

use crate::assertions::{PORT, TIMEOUT, assert_all_running, change, exchange, policy_for};

/// Fast Open for clients and servers, without cookies: 1, 2, 4 and 0x200 of
/// Documentation/networking/ip-sysctl.rst.
const FAST_OPEN: &str = "519";
/// The time in which no connection may arrive; a blocked SYN is given up after half of it.
const NOTHING: Duration = Duration::from_secs(1);

/// A socket whose `connect()` has returned although no SYN was sent: the SYN is sent with the first
/// write.
fn connect_with_deferred_syn(client: &Host, to: SocketAddr) -> Socket {
    client.enter(|| {
        let socket =
            Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
        setsockopt(&socket, sockopt::TcpFastOpenConnect, &true).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.connect(&to.into()).unwrap();
        socket
    })
}

fn accept_within(listener: &TcpListener, within: Duration) -> Option<TcpStream> {
    listener.set_nonblocking(true).unwrap();
    let began = Instant::now();
    while began.elapsed() < within {
        match listener.accept() {
            Ok((stream, _)) => return Some(stream),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

#[test]
fn a_deferred_syn_is_dropped_after_a_deny() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    for pod in [topology.client(), topology.server()] {
        pod.enter(|| fs::write("/proc/sys/net/ipv4/tcp_fastopen", FAST_OPEN))
            .unwrap();
    }
    let mut mesh = topology.mesh().start().unwrap();
    let listener = topology.listen(topology.server(), PORT).unwrap();
    for family in Family::BOTH {
        let to = topology.server().at(family, PORT);
        exchange(&topology.connect(to, &listener).unwrap());
        let (early, late) = (
            connect_with_deferred_syn(topology.client(), to),
            connect_with_deferred_syn(topology.client(), to),
        );
        // A deferred SYN arrives while the connection is allowed.
        assert_eq!(early.send(b"word").unwrap(), 4);
        let mut received = [0; 4];
        let mut arrived =
            accept_within(&listener, TIMEOUT).expect("an allowed connection must arrive");
        arrived.set_nonblocking(false).unwrap();
        arrived.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"word");

        let deny = policy_for(topology.client(), "too-late", "Deny");
        change(&mut mesh, |settings| settings.policies.push(deny.clone()));
        // The result of the write depends on the kernel.
        drop(late.send(b"word"));
        assert!(accept_within(&listener, NOTHING).is_none(), "{to}");
        change(&mut mesh, |settings| settings.policies.clear());
        listener.set_nonblocking(false).unwrap();
    }
    assert_all_running(&mut mesh);
}
