//! Ways to bypass the connect hook. Each connection is captured or refused, and no packet leaves the
//! pod.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use socket2::{Domain, Protocol, Socket, Type};

use super::world::{
    DEVICE, MARK, POD4, POD6, Wire, World, accept, at, dial, disconnect, in_namespace, listen, set,
    tcp,
};

const DIALLED: [&str; 2] = ["192.0.2.1:80", "[2001:db8::1]:80"];

/// Expects that the next captured connection has this destination, and that its data arrives.
fn expect_captured(world: &World, dialled: SocketAddr, socket: &mut impl std::io::Write) {
    let (mut proxy, found) = world.captured().expect("captured");
    assert_eq!(found, dialled);
    socket.write_all(b"data").unwrap();
    let mut bytes = [0; 4];
    proxy.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"data");
}

#[test]
#[ignore = "needs root"]
fn packets_of_uncaptured_connections_are_counted() {
    in_namespace(|| {
        let world = World::new();
        world.kernel.withdraw(world.cookie).unwrap();
        for dialled in DIALLED {
            let mut wire = Wire::tap();
            let socket = tcp(at(dialled).is_ipv4());
            socket.set_nonblocking(true).unwrap();
            assert!(socket.connect(&at(dialled).into()).is_err());
            assert!(wire.packets() > 0, "{dialled}");
        }
    });
}

#[test]
#[ignore = "needs root"]
fn io_uring_connects_are_captured() {
    in_namespace(|| {
        let world = World::new();
        let mut wire = Wire::tap();
        for dialled in DIALLED.map(at) {
            let mut socket = tcp(dialled.is_ipv4());
            let address = socket2::SockAddr::from(dialled);
            let mut ring = io_uring::IoUring::new(4).unwrap();
            let connect = io_uring::opcode::Connect::new(
                io_uring::types::Fd(socket.as_raw_fd()),
                address.as_ptr().cast(),
                address.len(),
            );
            // SAFETY: socket and address outlive the one request.
            unsafe { ring.submission().push(&connect.build()).unwrap() };
            ring.submit_and_wait(1).unwrap();
            assert_eq!(ring.completion().next().unwrap().result(), 0);
            expect_captured(&world, dialled, &mut socket);
        }
        assert_eq!(wire.packets(), 0);
    });
}

#[test]
#[ignore = "needs root"]
fn fast_open_is_captured() {
    in_namespace(|| {
        std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").unwrap();
        let world = World::new();
        let listener = world.outbound.as_ref().unwrap();
        set(listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16);
        let mut wire = Wire::tap();
        // Twice each: the second connection has the cookie, and its data is accepted with the SYN.
        for dialled in DIALLED.into_iter().chain(DIALLED).map(at) {
            let socket = tcp(dialled.is_ipv4());
            let sent = socket.send_to_with_flags(b"early", &dialled.into(), libc::MSG_FASTOPEN);
            assert_eq!(sent.unwrap(), 5);
            expect_data(&world, dialled, b"early");

            let mut socket = tcp(dialled.is_ipv4());
            set(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1);
            socket.connect(&dialled.into()).unwrap();
            socket.write_all(b"later").unwrap();
            expect_data(&world, dialled, b"later");
            let peer = socket.peer_addr().unwrap().as_socket();
            assert_eq!(peer, Some(dialled));
        }
        assert_eq!(wire.packets(), 0);
    });
}

fn expect_data(world: &World, dialled: SocketAddr, data: &[u8]) {
    let (mut proxy, found) = world.captured().expect("captured");
    assert_eq!(found, dialled);
    let mut bytes = vec![0; data.len()];
    proxy.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, data);
}

#[test]
#[ignore = "needs root"]
fn mptcp_is_captured_and_can_listen() {
    in_namespace(|| {
        let world = World::new();
        let mut wire = Wire::tap();
        for dialled in DIALLED.map(at) {
            let mut socket = mptcp(Domain::for_address(dialled));
            socket.connect(&dialled.into()).unwrap();
            expect_captured(&world, dialled, &mut socket);
            assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(dialled));
        }
        assert_eq!(wire.packets(), 0);
        let server = mptcp(Domain::IPV6);
        server.bind(&at("[::]:7070").into()).unwrap();
        server.listen(8).unwrap();
        let _plain = dial(at("127.0.0.1:7070")).unwrap();
        server.accept().unwrap();
        let joined = mptcp(Domain::IPV4);
        joined.connect(&at("127.0.0.1:7070").into()).unwrap();
        server.accept().unwrap();
    });
}

fn mptcp(domain: Domain) -> Socket {
    Socket::new(
        domain,
        Type::STREAM,
        Some(Protocol::from(libc::IPPROTO_MPTCP)),
    )
    .unwrap()
}

/// This happens on kernels where MPTCP does not run the connect hook, and while a pod is being
/// enrolled.
#[test]
#[ignore = "needs root"]
fn connections_that_the_connect_hook_missed_are_captured() {
    in_namespace(|| {
        let world = World::new();
        for name in ["capture4", "capture6"] {
            super::super::pins::detach(&world.pins().join("links").join(name)).unwrap();
        }
        let mut wire = Wire::tap();
        for dialled in DIALLED.map(at) {
            for device in [None, Some(DEVICE.as_bytes())] {
                let mut socket = tcp(dialled.is_ipv4());
                socket.bind_device(device).unwrap();
                let own = if dialled.is_ipv4() { POD4 } else { POD6 };
                socket.bind(&SocketAddr::new(own, 0).into()).unwrap();
                drop_capabilities();
                let connected = socket.connect(&dialled.into());
                restore_capabilities();
                connected.unwrap();
                expect_captured(&world, dialled, &mut socket);
            }
        }
        assert_eq!(wire.packets(), 0);
    });
}

#[test]
#[ignore = "needs root"]
fn bound_sockets_keep_their_port_and_do_not_show_loopback() {
    in_namespace(|| {
        let world = World::new();
        let mut wire = Wire::tap();
        for (own, dialled, pod) in [
            ("0.0.0.0:4001", DIALLED[0], POD4),
            ("10.9.0.1:4002", DIALLED[0], POD4),
            ("[::]:4003", DIALLED[1], POD6),
            ("[fd09::1]:4004", DIALLED[1], POD6),
        ] {
            let (own, dialled) = (at(own), at(dialled));
            let mut socket = tcp(own.is_ipv4());
            socket.bind(&own.into()).unwrap();
            socket.connect(&dialled.into()).unwrap();
            expect_captured(&world, dialled, &mut socket);
            let local = socket.local_addr().unwrap().as_socket().unwrap();
            assert_eq!(local, SocketAddr::new(pod, own.port()));
            assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(dialled));
        }
        let mut socket = tcp(false);
        socket.bind(&at("[::]:4005").into()).unwrap();
        socket.connect(&at("[::ffff:192.0.2.1]:80").into()).unwrap();
        expect_captured(&world, at(DIALLED[0]), &mut socket);
        let local = socket.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(local, at("[::ffff:10.9.0.1]:4005"));
        assert_eq!(wire.packets(), 0);
    });
}

#[test]
#[ignore = "needs root"]
fn non_blocking_connects_are_captured() {
    in_namespace(|| {
        let world = World::new();
        for dialled in DIALLED.map(at) {
            let mut socket = tcp(dialled.is_ipv4());
            socket.set_nonblocking(true).unwrap();
            // On loopback the connection may be established before connect returns.
            drop(socket.connect(&dialled.into()));
            expect_captured(&world, dialled, &mut socket);
        }
    });
}

#[test]
#[ignore = "needs root"]
fn a_socket_bound_to_a_device_is_captured_and_stays_bound() {
    in_namespace(|| {
        let world = World::new();
        let mut wire = Wire::tap();
        let socket_with_device = |dialled: SocketAddr| {
            let socket = tcp(dialled.is_ipv4());
            socket.bind_device(Some(DEVICE.as_bytes())).unwrap();
            socket
        };
        for is_capable in [true, false] {
            if !is_capable {
                drop_capabilities();
            }
            for dialled in DIALLED.map(at) {
                let mut socket = socket_with_device(dialled);
                socket.connect(&dialled.into()).unwrap();
                expect_captured(&world, dialled, &mut socket);
                assert_eq!(socket.device().unwrap().unwrap(), DEVICE.as_bytes());
                let mut socket = mptcp(Domain::for_address(dialled));
                socket.bind_device(Some(DEVICE.as_bytes())).unwrap();
                socket.connect(&dialled.into()).unwrap();
                expect_captured(&world, dialled, &mut socket);
            }
        }
        restore_capabilities();
        assert_eq!(wire.packets(), 0);
    });
}

/// Drops this thread's effective capabilities and keeps its inheritable and permitted sets.
fn drop_capabilities() {
    set_effective_capabilities(false);
}

fn restore_capabilities() {
    set_effective_capabilities(true);
}

fn set_effective_capabilities(enabled: bool) {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let mut header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: version 3 has two sets of three words.
    let read = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    assert_eq!(read, 0);
    for set in &mut sets {
        set[0] = if enabled { set[1] } else { 0 };
    }
    // SAFETY: as above.
    let written = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    assert_eq!(written, 0);
}

#[test]
#[ignore = "needs root"]
fn a_process_in_another_cgroup_is_captured() {
    in_namespace(|| {
        let world = World::new();
        let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .find(|path| std::path::Path::new(path).join("cgroup.procs").exists())
            .unwrap();
        let cgroup = format!("{unified}/ztunnel-test-{}", std::process::id());
        std::fs::create_dir(&cgroup).unwrap();
        let procs = format!("{cgroup}/cgroup.procs");
        let dialled = at(DIALLED[0]);
        let socket = tcp(true);
        let code = in_child(|| {
            if std::fs::write(&procs, "0").is_err() {
                return 1;
            }
            let inside = tcp(true);
            i32::from(inside.connect(&dialled.into()).is_err())
        });
        drop(socket);
        std::fs::remove_dir(&cgroup).unwrap();
        assert_eq!(code, 0);
        assert_eq!(world.captured().unwrap().1, dialled);
    });
}

#[test]
#[ignore = "needs root"]
fn the_proxys_mark_in_another_process_is_captured() {
    in_namespace(|| {
        let world = World::new();
        let mut wire = Wire::tap();
        let dialled = at(DIALLED[0]);
        let code = in_child(|| {
            let socket = tcp(true);
            set(&socket, libc::SOL_SOCKET, libc::SO_MARK, MARK.cast_signed());
            i32::from(socket.connect(&dialled.into()).is_err())
        });
        assert_eq!(code, 0);
        assert_eq!(world.captured().unwrap().1, dialled);
        assert_eq!(wire.packets(), 0);
    });
}

/// Runs a function in a child process in this thread's namespace. It may only make system calls.
fn in_child(run: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child makes system calls and leaves without running anything of the parent's.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let code = run();
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, code) => code,
            other => panic!("{other:?}"),
        },
    }
}

#[test]
#[ignore = "needs root"]
fn a_namespace_inside_the_pod_cannot_connect() {
    in_namespace(|| {
        let world = World::new();
        let mut wire = Wire::tap();
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
                .or_else(|_| unshare(CloneFlags::CLONE_NEWNET))
                .unwrap();
            for dialled in DIALLED {
                assert!(dial(at(dialled)).is_err());
            }
        })
        .join()
        .unwrap();
        assert!(world.captured().is_none());
        assert_eq!(wire.packets(), 0);
    });
}

#[test]
#[ignore = "needs root"]
fn a_socket_from_before_enrolment_is_captured_and_can_be_reused() {
    in_namespace(|| {
        let world = World::new();
        world.kernel.withdraw(world.cookie).unwrap();
        let dialled = at(DIALLED[0]);
        let mut before = tcp(true);
        world.enroll();
        before.connect(&dialled.into()).unwrap();
        expect_captured(&world, dialled, &mut before);
        // The same socket, disconnected, connects to the pod itself without capture.
        disconnect(&before);
        let server = listen(at("[::]:8080"));
        before.connect(&SocketAddr::new(POD4, 8080).into()).unwrap();
        assert!(accept(&server).is_some());
        let peer = before.peer_addr().unwrap().as_socket().unwrap();
        assert_eq!(peer, SocketAddr::new(POD4, 8080));
    });
}
