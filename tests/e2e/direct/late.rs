//! An application that puts off its SYN until after a deny gains nothing: what let its `connect()`
//! go is asked for again when the SYN is about to leave.

use std::fs;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::{Family, Host};

use crate::proof::{PATIENCE, PORT, about, change, speak, unharmed};

/// Fast Open for clients and servers, without cookies: 1, 2, 4 and 0x200 of
/// Documentation/networking/ip-sysctl.rst.
const FAST_OPEN: &str = "519";
/// How long a connection that must not come is waited for; a stopped one gives up in half of it.
const NOTHING: Duration = Duration::from_secs(1);

/// A socket whose `connect()` has succeeded although nothing was sent: the SYN goes with the first
/// write.
fn put_off(client: &Host, to: SocketAddr) -> Socket {
    client.enter(|| {
        let socket =
            Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
        setsockopt(&socket, sockopt::TcpFastOpenConnect, &true).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.connect(&to.into()).unwrap();
        socket
    })
}

fn comes(listener: &TcpListener, within: Duration) -> Option<TcpStream> {
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
fn a_syn_that_is_put_off_until_after_a_deny_reaches_nobody() {
    let scene = Scene::set(Lane::Direct).unwrap();
    for pod in [scene.client(), scene.server()] {
        pod.enter(|| fs::write("/proc/sys/net/ipv4/tcp_fastopen", FAST_OPEN))
            .unwrap();
    }
    let mut mesh = scene.mesh().start().unwrap();
    let listener = scene.listen(scene.server(), PORT).unwrap();
    for family in Family::BOTH {
        let to = scene.server().at(family, PORT);
        speak(&scene.connect(to, &listener).unwrap());
        let (early, late) = (put_off(scene.client(), to), put_off(scene.client(), to));
        // While it is allowed, one that was put off arrives.
        assert_eq!(early.send(b"word").unwrap(), 4);
        let mut heard = [0; 4];
        let mut arrived = comes(&listener, PATIENCE).expect("an allowed connection comes");
        arrived.set_nonblocking(false).unwrap();
        arrived.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"word");

        let deny = about(scene.client(), "too-late", "Deny");
        change(&mut mesh, |settings| settings.policies.push(deny.clone()));
        // Whatever the kernel says to that.
        drop(late.send(b"word"));
        assert!(comes(&listener, NOTHING).is_none(), "{to}");
        change(&mut mesh, |settings| settings.policies.clear());
        listener.set_nonblocking(false).unwrap();
    }
    unharmed(&mut mesh);
}
