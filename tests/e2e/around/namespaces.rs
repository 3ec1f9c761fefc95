//! A second network namespace, made inside a pod.
//!
//! By itself it has no link and no way out. A pod that may make links and forward packets
//! (`CAP_NET_ADMIN`) can give it one, provided the node routes the new addresses to the pod:
//! then the pod is a router, what it forwards is not its own traffic, and no connect hook sees
//! it. It leaves in plain, without an identity. What stops it is the other end: a policy that
//! demands an identity refuses it.

use std::io;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::{Mesh, Policy};
use ztunnel_tests::traffic::{self, Kind};

use super::{MARKER, mesh};
use crate::ends::{PATIENCE, watched};

#[test]
fn a_namespace_without_a_link_has_no_way_out() {
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
                traffic::get(to, MARKER, PATIENCE)
            });
            let error = outcome.unwrap_err();
            // IPv6 looks for an address of its own first.
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
fn what_a_privileged_pod_forwards_has_no_identity() {
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
    let nested = world.nested("a", 0).unwrap();
    let guarded = world.pod("b", 1);
    let _open = server.serve(Kind::Http, 8080).unwrap();
    let closed = guarded.serve(Kind::Http, 8080).unwrap();
    for family in Family::BOTH {
        let (answer, seen) = watched(&world, MARKER, || {
            nested.enter(|| traffic::get(server.at(family, 8080), MARKER, PATIENCE))
        });
        // It gets out, in the clear, and not as the pod.
        assert_eq!(answer.unwrap().peer.ip(), nested.address(family));
        assert!(seen.hits > 0, "{seen:?}");
        // Who asks for an identity does not let it in.
        let outcome = nested.enter(|| traffic::get(guarded.at(family, 8080), MARKER, PATIENCE));
        assert!(outcome.is_err(), "{outcome:?}");
    }
    assert_eq!(closed.accepted(), 0);
    // With an identity that pod is reached.
    let to = guarded.at(Family::V4, 8080);
    world
        .pod("a", 0)
        .enter(|| traffic::get(to, MARKER, PATIENCE))
        .unwrap();
}
