//! A server in the place of the destination's proxy that is not who it should be: the source's
//! proxy tells it nothing.

use std::io;
use std::net::{Ipv6Addr, TcpListener};
use std::thread;

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, identity, workload_uid};

use super::HBONE;
use crate::peer::{Authority, Leaf, serve_once};
use crate::scene::{self, HTTP, call};

/// What the server in the pod read from the source's proxy.
fn calls(client: &Host, server: &Host, family: Family, leaf: Leaf) -> io::Result<Vec<u8>> {
    let bind = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, HBONE)).ok();
    // A process that another test starts may still hold a copy of the last one.
    let listener = scene::wait(|| server.enter(bind)).expect("the port of HBONE is free");
    thread::scope(|scope| {
        let heard = scope.spawn(|| serve_once(&listener, leaf));
        let outcome = call(client, server.at(family, HTTP));
        assert!(outcome.is_err(), "nobody there speaks HTTP");
        heard.join().unwrap()
    })
}

#[test]
fn a_destination_with_another_identity_is_told_nothing() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 1));
    // The mesh knows the pod, and no proxy serves it.
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
        for (name, leaf, said) in wrong {
            let (before, told) = (failures(&mut mesh), lines(&mut mesh).len());
            let heard = calls(client, server, family, leaf);
            assert!(heard.is_err(), "{name}: the server heard {heard:?}");
            scene::eventually("a failure of TLS in the metrics", || {
                failures(&mut mesh) == before + 1.0
            });
            let line = scene::wait(|| lines(&mut mesh).get(told).cloned());
            let line = line.expect("a line about the connection");
            assert!(
                line.contains("TLS handshake with the server failed"),
                "{name}: {line}"
            );
            assert!(
                line.to_lowercase().contains(&said.to_lowercase()),
                "{name}: {line}"
            );
        }
        // The same server with the right identity is spoken to: HTTP/2 begins so.
        let heard = calls(client, server, family, authority.leaf(&[&right])).unwrap();
        assert!(heard.starts_with(b"PRI * HTTP/2.0"), "{heard:?}");
        scene::eventually("a line about the good server, too", || {
            lines(&mut mesh).len().is_multiple_of(5)
        });
    }
    scene::unharmed(&mut mesh);
}

/// What the source's access log says about connections to the server.
fn lines(mesh: &mut Mesh<'_>) -> Vec<String> {
    let log = mesh.proxy("a").log();
    // The last one counts when it is whole.
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
