//! The identity of a client is enforced on the fast path as in a tunnel: the kernel guarantees the
//! client's pod.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::json;
use socket2::{Domain, Socket, Type};
use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::{Family, Host};
use ztunnel_tests::on_paths;
use ztunnel_tests::proxy::{Mesh, Policy, identity};
use ztunnel_tests::traffic::Kind;

use crate::assertions::{
    PORT, TIMEOUT, assert_all_running, call, eventually, policy_for, send_request,
};

on_paths!(a_policy_that_allows_one_identity_refuses_others: direct, auto);
fn a_policy_that_allows_one_identity_refuses_others(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let [one, other] = topology.clients();
    let mut mesh = topology
        .mesh()
        .policy(policy_for(one, "only-one", "Allow"))
        .start()
        .unwrap();
    topology.wait_for_acceleration(&mut mesh).unwrap();
    let running = topology.serve(Kind::Http, PORT).unwrap();
    let service = Mesh::service(topology.server());
    for family in Family::BOTH {
        for to in [topology.server().at(family, PORT), service.at(family, 80)] {
            // Alternating, so that an entry of one client could be applied to the other by mistake.
            for round in 0..4 {
                let sent = send_request(&topology, one, to).unwrap();
                assert_eq!(sent.direct, round > 0, "{to}, round {round}");
                let refused = call(other, to);
                assert!(refused.is_err(), "{to}, round {round}: {refused:?}");
            }
        }
    }
    assert_eq!(running.accepted(), topology.dialled());
    mesh.proxy("a")
        .wait_for_log(&identity(one), TIMEOUT)
        .expect("the access log must contain the identity");
    assert_all_running(&mut mesh);
}

/// Connects from an address that may belong to another host.
fn call_as(host: &Host, from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    host.enter(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if to.is_ipv4() {
            socket.set_freebind_v4(true)?;
        } else {
            socket.set_freebind_v6(true)?;
        }
        socket.bind(&from.into())?;
        // An answer would be sent to the owner of the address, so this does not wait for one.
        socket.connect_timeout(&to.into(), std::time::Duration::from_secs(3))?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        let mut answer = [0; 16];
        stream.read_exact(&mut answer)
    })
}

/// A privileged pod can send packets with any source address. It does not get the identity of the
/// address's owner.
#[test]
fn a_spoofed_address_does_not_give_an_identity() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let [one, thief] = topology.clients();
    let outside = topology.world().outside();
    let mut mesh = topology
        .mesh()
        .policy(policy_for(one, "only-one", "Allow"))
        .start()
        .unwrap();
    let running = topology.serve(Kind::Http, PORT).unwrap();
    for family in Family::BOTH {
        let to = topology.server().at(family, PORT);
        topology.get(to, "first").unwrap();
        eventually("all admitted connections have arrived", || {
            (running.accepted() == topology.dialled()).then_some(())
        });
        for host in [thief, outside] {
            let outcome = call_as(host, one.at(family, 0), to);
            assert!(outcome.is_err(), "{} as {}", host.name, one.name);
        }
        assert_eq!(
            running.accepted(),
            topology.dialled(),
            "{family:?}: a spoofed connection was admitted"
        );
    }
    assert_all_running(&mut mesh);
}

/// Namespaces and addresses are matched, too.
#[test]
fn a_deny_is_enforced_beside_an_allow() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let [one, other] = topology.clients();
    let allow_all = Policy::namespace(
        "allow-all",
        "Allow",
        json!([[[{ "namespaces": [{ "exact": "default" }] }]]]),
    );
    let mut mesh = topology
        .mesh()
        .policy(allow_all)
        .policy(policy_for(other, "but-one", "Deny"))
        .start()
        .unwrap();
    let running = topology.serve(Kind::Http, PORT).unwrap();
    for family in Family::BOTH {
        let to = topology.server().at(family, PORT);
        for round in 0..3 {
            assert_eq!(send_request(&topology, one, to).unwrap().direct, round > 0);
            assert!(call(other, to).is_err());
        }
    }
    assert_eq!(running.accepted(), topology.dialled());
    let denied = [("reporter", "destination"), ("response_flags", "DENY")];
    eventually("six denials are counted", || {
        let metrics = mesh.proxy("a").metrics().unwrap();
        (metrics.sum("istio_tcp_connections_failed_total", &denied) == 6.0).then_some(())
    });
    assert_all_running(&mut mesh);
}
