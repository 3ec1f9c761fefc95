//! The admin endpoint of a running proxy.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use ztunnel_tests::net::{Family, World};
use ztunnel_tests::proxy::Mesh;
use ztunnel_tests::traffic::{self, Kind};

use crate::connections::{TIMEOUT, eventually};

#[test]
fn the_config_dump_shows_the_mesh_and_no_secret() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _running = server.serve(Kind::Http, 8080).unwrap();
    let to = server.at(Family::V4, 8080);
    client.enter(|| traffic::get(to, "x", TIMEOUT)).unwrap();
    let dump = mesh.proxy("a").config_dump().unwrap();
    assert_eq!(dump["workloads"].as_array().unwrap().len(), 4);
    assert_eq!(dump["services"].as_array().unwrap().len(), 4);
    assert!(dump["policies"].as_array().unwrap().is_empty());
    assert_eq!(dump["config"]["node"], "a");
    assert!(dump["version"].is_string());
    let certificates = dump["certificates"].to_string();
    assert!(
        certificates.contains("spiffe://cluster.local/ns/default/sa/a-0"),
        "{certificates}"
    );
    let chain = dump["certificates"][0]["certChain"].as_array();
    assert!(
        chain.is_some_and(|chain| !chain.is_empty()),
        "{certificates}"
    );
    let state = dump["workloadState"].as_object().unwrap();
    assert!(
        state.values().any(|pod| pod["info"]["name"] == "a-0"),
        "{state:?}"
    );
    assert!(!dump.to_string().contains("PRIVATE KEY"));
}

#[test]
fn the_admin_interface_lists_its_pages_and_changes_the_log() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let proxy = mesh.proxy("a");
    let (status, index) = proxy.admin("GET", "/").unwrap();
    assert_eq!(status, 200);
    for page in ["/config_dump", "/logging", "/quitquitquit"] {
        assert!(index.contains(page), "{index}");
    }
    let (status, output) = proxy.admin("POST", "/logging?level=debug").unwrap();
    assert_eq!((status, output.contains("debug")), (200, true), "{output}");
    let (status, _) = proxy.admin("POST", "/logging?level=nonsense").unwrap();
    assert_eq!(status, 400);
    assert_eq!(proxy.admin("GET", "/absent").unwrap().0, 404);
    assert_eq!(proxy.admin("GET", "/quitquitquit").unwrap().0, 405);
    assert!(proxy.alive());
}

#[test]
fn another_user_of_the_node_can_read_and_not_change() {
    const USER: u32 = 65534;
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let ask = |request: &str| {
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/15000 && printf '{request} HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
        );
        let run = || {
            Command::new("bash")
                .uid(USER)
                .args(["-c", &script])
                .output()
        };
        let output = world.node("a").host.enter(run).unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let read = ask("GET /logging");
    assert!(read.starts_with("HTTP/1.0 200 "), "{read}");
    for request in ["POST /quitquitquit", "POST /logging?level=trace"] {
        let refused = ask(request);
        assert!(refused.starts_with("HTTP/1.0 403 "), "{refused}");
        assert!(refused.contains("not the user 65534"), "{refused}");
    }
    assert!(mesh.proxy("a").alive());
}

#[test]
fn quitquitquit_ends_the_proxy() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let proxy = mesh.proxy("a");
    assert_eq!(proxy.admin("POST", "/quitquitquit").unwrap().0, 200);
    eventually("the proxy has ended", || (!proxy.alive()).then_some(()));
    assert!(proxy.terminate(Duration::from_secs(1)).is_err() || !proxy.alive());
    // The proxy can be started again.
    proxy.start().unwrap();
    let server = world.pod("b", 0);
    let _running = server.serve(Kind::Http, 8080).unwrap();
    let to = server.at(Family::V4, 8080);
    world
        .pod("a", 0)
        .enter(|| traffic::get(to, "x", TIMEOUT))
        .unwrap();
}
