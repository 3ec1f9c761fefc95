use std::net::Ipv4Addr;

use nix::sched::{CloneFlags, unshare};

use super::super::{netlink, routing};
use super::*;

/// An address for documentation (RFC 5737), which no interface has.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Runs the test in the network namespace of a pod.
fn in_pod(test: impl FnOnce() + Send) {
    let in_new_namespace = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        netlink::set_loopback_up().unwrap();
        routing::prepare_delivery().unwrap();
        test();
    };
    std::thread::scope(|scope| scope.spawn(in_new_namespace).join().unwrap());
}

fn listener(backlog: i32) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    socket.listen(backlog).unwrap();
    socket
}

fn begin_delivery(to: &Socket) -> Attempt {
    let dial = Dial {
        timeout: Duration::from_secs(1),
        keepalive: None,
    };
    let to = to.local_addr().unwrap().as_socket().unwrap();
    dial.begin_delivery(to, CLIENT).unwrap()
}

fn port(socket: &Socket) -> u16 {
    socket.local_addr().unwrap().as_socket().unwrap().port()
}

#[test]
#[ignore = "needs root"]
fn workers_that_meet_take_other_ports_of_the_range() {
    in_pod(|| {
        let application = listener(4096);
        let mut open = Vec::new();
        for _worker in 0..3 {
            NEXT.set(*PORTS.start());
            for _ in 0..300 {
                let Attempt::Done(socket) = begin_delivery(&application) else {
                    panic!("delivery {} waits", open.len());
                };
                assert!(PORTS.contains(&port(&socket)), "{}", port(&socket));
                open.push(socket);
            }
        }
    });
}

#[test]
#[ignore = "needs root"]
fn a_delivery_to_a_full_queue_waits_with_a_port_of_the_range() {
    in_pod(|| {
        let application = listener(0);
        let Attempt::Done(_first) = begin_delivery(&application) else {
            panic!("the queue holds one connection");
        };
        let Attempt::Waiting(second) = begin_delivery(&application) else {
            panic!("the queue is full");
        };
        assert!(PORTS.contains(&port(&second)), "{}", port(&second));
    });
}

#[test]
#[ignore = "needs root"]
fn a_privileged_port_is_replaced_by_another_one() {
    in_pod(|| {
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let port_of = |socket: &Socket| {
            let own = socket.local_addr().unwrap().as_socket().unwrap();
            assert_eq!(own.ip(), localhost);
            own.port()
        };
        let new = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        let application = new();
        application
            .bind(&SocketAddr::new(localhost, 777).into())
            .unwrap();
        let privileged = new();
        bind_source(&privileged, localhost, 777).unwrap();
        assert!(PRIVILEGED_SOURCES.contains(&port_of(&privileged)));
        let other = new();
        bind_source(&other, localhost, 40_000).unwrap();
        // The kernel chooses the port when the socket connects.
        assert_eq!(port_of(&other), 0);
    });
}
