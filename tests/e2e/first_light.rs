//! Pod to pod through both proxies.
use std::time::Duration;
use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{self};

#[test]
fn requests_arrive() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(traffic::Kind::Http, 8080).unwrap();
    for family in [Family::V4, Family::V6] {
        for to in [
            server.at(family, 8080),
            Mesh::service(server).at(family, 80),
        ] {
            let r = client.enter(|| traffic::get(to, "marker", Duration::from_secs(3)));
            println!("{to} {r:?}");
        }
    }
    let _held = client.enter(|| {
        traffic::idle::open(
            server.at(Family::V4, 8080),
            std::env::var("N").map_or(0, |n| n.parse().unwrap()),
        )
        .unwrap()
    });
    std::thread::sleep(Duration::from_secs(
        std::env::var("S").map_or(0, |n| n.parse().unwrap()),
    ));
    for p in mesh.proxies() {
        println!("{}\n{}", p.log(), p.ready_after().as_millis());
    }
}
