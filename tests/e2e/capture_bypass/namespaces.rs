//! A second network namespace, created inside a pod.
//!
//! Such a namespace has no link. A pod that may create links and forward packets (`CAP_NET_ADMIN`)
//! can connect it, if the node routes the new addresses to the pod. The pod is then a router:
//! forwarded traffic is not its own, and no connect hook sees it. It leaves in plaintext without an
//! identity. The destination protects itself with a policy that requires an identity.

use std::io;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::{Mesh, Policy};
use ztunnel_tests::traffic::{self, Kind};

use super::{MARKER, mesh};
use crate::connections::{TIMEOUT, sniffed};

#[test]
fn a_namespace_without_a_link_reaches_nothing() {
    let world = World::two_nodes().unwrap();
    let _mesh = mesh(&world);
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let running = server.serve(Kind::Http, 8080).unwrap();
    for family in Family::BOTH {
        for to in [
            server.at(family, 8080),
            Mesh::service(server).at(family, 80),
        ] {
            let outcome = client.enter(|| -> io::Result<_> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                traffic::get(to, MARKER, TIMEOUT)
            });
            let error = outcome.unwrap_err();
            // IPv6 selects a source address first.
            let none = [Errno::ENETUNREACH, Errno::EADDRNOTAVAIL];
            assert!(
                none.contains(&Errno::from_raw(error.raw_os_error().unwrap())),
                "{to}: {error}"
            );
        }
    }
    assert_eq!(running.accepted(), 0);
}

#[test]
fn traffic_that_a_privileged_pod_forwards_has_no_identity() {
    let world = World::two_nodes().unwrap();
    let server = world.pod("b", 0);
    let strict = Policy::selector(
        "strict",
        "Deny",
        json!([[[{ "notPrincipals": [{ "presence": {} }] }]]]),
    );
    let _mesh = Mesh::builder(&world)
        .policy(strict)
        .settings(|settings| {
            for workload in &mut settings.workloads {
                if workload.name == "b-1" {
                    workload
                        .authorization_policies
                        .push("default/strict".to_owned());
                }
            }
        })
        .start()
        .unwrap();
    let nested_host = world.nested_host("a", 0).unwrap();
    let guarded = world.pod("b", 1);
    let _open = server.serve(Kind::Http, 8080).unwrap();
    let closed = guarded.serve(Kind::Http, 8080).unwrap();
    for family in Family::BOTH {
        let (answer, seen) = sniffed(&world, MARKER, || {
            nested_host.enter(|| traffic::get(server.at(family, 8080), MARKER, TIMEOUT))
        });
        // The traffic leaves in plaintext, without the pod's address.
        assert_eq!(answer.unwrap().peer.ip(), nested_host.address(family));
        assert!(seen.marker_packets > 0, "{seen:?}");
        // A destination that requires an identity refuses it.
        let outcome = nested_host.enter(|| traffic::get(guarded.at(family, 8080), MARKER, TIMEOUT));
        assert!(outcome.is_err(), "{outcome:?}");
    }
    assert_eq!(closed.accepted(), 0);
    // A client with an identity reaches that pod.
    let to = guarded.at(Family::V4, 8080);
    world
        .pod("a", 0)
        .enter(|| traffic::get(to, MARKER, TIMEOUT))
        .unwrap();
}
