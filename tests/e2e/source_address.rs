//! The server sees the client's own address, in a tunnel too.

use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{self, Kind};

use crate::ends::PATIENCE;

#[test]
fn the_server_sees_the_address_of_the_pod_that_called() {
    let world = World::two_nodes().unwrap();
    let _mesh = Mesh::start(&world).unwrap();
    let server = world.pod("b", 0);
    let _running = server.serve(Kind::Http, 8080).unwrap();
    for client in [world.pod("a", 0), world.pod("a", 1), world.pod("b", 1)] {
        for family in Family::BOTH {
            for to in [
                server.at(family, 8080),
                Mesh::service(server).at(family, 80),
            ] {
                let answer = client.enter(|| traffic::get(to, "who", PATIENCE)).unwrap();
                assert_eq!(
                    answer.peer.ip(),
                    client.address(family),
                    "{} to {to}",
                    client.name
                );
            }
        }
    }
}
