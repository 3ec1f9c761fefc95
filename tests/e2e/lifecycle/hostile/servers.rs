//! A server with a wrong identity at the address of a destination: the source's proxy sends it no
//! data.

use std::io;
use std::net::{Ipv6Addr, TcpListener};
use std::thread;

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, identity, workload_uid};

use super::HBONE;
use crate::assertions::{self, HTTP, call};
use crate::peer::{Authority, Leaf, serve_once};

/// The data that the server in the pod receives from the source's proxy.
fn serve_impostor(client: &Host, server: &Host, family: Family, leaf: Leaf) -> io::Result<Vec<u8>> {
    let bind = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, HBONE)).ok();
    // A process that another test has just forked may hold a copy of the previous listener.
    let listener = assertions::wait(|| server.enter(bind)).expect("the HBONE port must be free");
    thread::scope(|scope| {
        let received = scope.spawn(|| serve_once(&listener, leaf));
        let outcome = call(client, server.at(family, HTTP));
        assert!(outcome.is_err(), "the server does not implement HTTP");
        received.join().unwrap()
    })
}

#[test]
fn no_data_is_sent_to_a_destination_with_another_identity() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 1));
    // The pod is a workload of the mesh, and no proxy serves it.
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| {
            settings
                .pods
                .retain(|pod| pod.workload != workload_uid(server))
        })
        .start()
        .unwrap();
    let authority = Authority::of_mesh(world.directory());
    let right = identity(server);
    let other = identity(client);
    for family in Family::BOTH {
        let wrong = [
            (
                "another pod's identity",
                authority.leaf(&[&other]),
                other.as_str(),
            ),
            ("another root", Authority::foreign().leaf(&[&right]), "root"),
            ("no identity", authority.leaf(&[]), "SPIFFE"),
            ("two identities", authority.leaf(&[&right, &other]), "2"),
        ];
        for (name, leaf, expected) in wrong {
            let (before, logged) = (failures(&mut mesh), lines(&mut mesh).len());
            let received = serve_impostor(client, server, family, leaf);
            assert!(
                received.is_err(),
                "{name}: the server received {received:?}"
            );
            assertions::eventually("a failure of TLS in the metrics", || {
                failures(&mut mesh) == before + 1.0
            });
            let line = assertions::wait(|| lines(&mut mesh).get(logged).cloned());
            let line = line.expect("the access log must contain the connection");
            assert!(
                line.contains("TLS handshake with the server failed"),
                "{name}: {line}"
            );
            assert!(
                line.to_lowercase().contains(&expected.to_lowercase()),
                "{name}: {line}"
            );
        }
        // The same server with the right identity receives the HTTP/2 preface.
        let received = serve_impostor(client, server, family, authority.leaf(&[&right])).unwrap();
        assert!(received.starts_with(b"PRI * HTTP/2.0"), "{received:?}");
        assertions::eventually("a line about the valid server", || {
            lines(&mut mesh).len().is_multiple_of(5)
        });
    }
    assertions::assert_all_running(&mut mesh);
}

/// The lines of the source's access log about connections to the server.
fn lines(mesh: &mut Mesh<'_>) -> Vec<String> {
    let log = mesh.proxy("a").log();
    // The last line may be incomplete.
    log.split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
        .filter(|line| line.contains("dst.workload=\"b-1\""))
        .map(str::to_owned)
        .collect()
}

fn failures(mesh: &mut Mesh<'_>) -> f64 {
    let labels = [("reporter", "source"), ("response_flags", "TLS_FAILURE")];
    mesh.proxy("a")
        .metrics()
        .unwrap()
        .sum("istio_tcp_connections_failed_total", &labels)
}
