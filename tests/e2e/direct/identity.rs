//! Who a client is counts on the direct lane as it does in a tunnel: the kernel vouches for it.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::json;
use socket2::{Domain, Socket, Type};
use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::{Family, Host};
use ztunnel_tests::on_lanes;
use ztunnel_tests::proxy::{Mesh, Policy, identity};
use ztunnel_tests::traffic::Kind;

use crate::proof::{PATIENCE, PORT, about, ask, call, eventually, unharmed};

on_lanes!(a_policy_that_allows_one_identity_refuses_the_others: direct, auto);
fn a_policy_that_allows_one_identity_refuses_the_others(lane: Lane) {
    let scene = Scene::set(lane).unwrap();
    let [one, other] = scene.clients();
    let mut mesh = scene
        .mesh()
        .policy(about(one, "only-one", "Allow"))
        .start()
        .unwrap();
    scene.chosen(&mut mesh).unwrap();
    let running = scene.serve(Kind::Http, PORT).unwrap();
    let service = Mesh::service(scene.server());
    for family in Family::BOTH {
        for to in [scene.server().at(family, PORT), service.at(family, 80)] {
            // In turns, so that what is known of one could be mistaken for the other.
            for round in 0..4 {
                let asked = ask(&scene, one, to).unwrap();
                assert_eq!(asked.direct, round > 0, "{to}, round {round}");
                let refused = call(other, to);
                assert!(refused.is_err(), "{to}, round {round}: {refused:?}");
            }
        }
    }
    assert_eq!(running.accepted(), scene.knocks());
    mesh.proxy("a")
        .wait_for_log(&identity(one), PATIENCE)
        .expect("the identity in the access log");
    unharmed(&mut mesh);
}

/// Connects from an address that need not be the host's own.
fn call_as(host: &Host, from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    host.enter(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if to.is_ipv4() {
            socket.set_freebind_v4(true)?;
        } else {
            socket.set_freebind_v6(true)?;
        }
        socket.bind(&from.into())?;
        // An answer would go to whom the address belongs to, so this waits for nothing.
        socket.connect_timeout(&to.into(), std::time::Duration::from_secs(3))?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        let mut answer = [0; 16];
        stream.read_exact(&mut answer)
    })
}

/// A privileged pod can put any address on its packets. It does not become who has the address.
#[test]
fn an_address_alone_is_no_identity() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let [one, thief] = scene.clients();
    let outside = scene.world().outside();
    let mut mesh = scene
        .mesh()
        .policy(about(one, "only-one", "Allow"))
        .start()
        .unwrap();
    let running = scene.serve(Kind::Http, PORT).unwrap();
    for family in Family::BOTH {
        let to = scene.server().at(family, PORT);
        scene.get(to, "known").unwrap();
        eventually("what was let in has arrived", || {
            (running.accepted() == scene.knocks()).then_some(())
        });
        for host in [thief, outside] {
            let outcome = call_as(host, one.at(family, 0), to);
            assert!(outcome.is_err(), "{} as {}", host.name, one.name);
        }
        assert_eq!(running.accepted(), scene.knocks(), "{family:?}: it got in");
    }
    unharmed(&mut mesh);
}

/// Namespaces and addresses are matched too.
#[test]
fn a_deny_is_kept_beside_an_allow() {
    let scene = Scene::set(Lane::Direct).unwrap();
    let [one, other] = scene.clients();
    let everybody = Policy::namespace(
        "everybody",
        "Allow",
        json!([[[{ "namespaces": [{ "exact": "default" }] }]]]),
    );
    let mut mesh = scene
        .mesh()
        .policy(everybody)
        .policy(about(other, "but-one", "Deny"))
        .start()
        .unwrap();
    let running = scene.serve(Kind::Http, PORT).unwrap();
    for family in Family::BOTH {
        let to = scene.server().at(family, PORT);
        for round in 0..3 {
            assert_eq!(ask(&scene, one, to).unwrap().direct, round > 0);
            assert!(call(other, to).is_err());
        }
    }
    assert_eq!(running.accepted(), scene.knocks());
    let denied = [("reporter", "destination"), ("response_flags", "DENY")];
    eventually("six denials are counted", || {
        let metrics = mesh.proxy("a").metrics().unwrap();
        (metrics.sum("istio_tcp_connections_failed_total", &denied) == 6.0).then_some(())
    });
    unharmed(&mut mesh);
}
