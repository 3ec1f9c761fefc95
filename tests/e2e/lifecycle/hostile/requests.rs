//! Peers with a good certificate that ask for what they may not have.

use serde_json::json;
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::Policy;

use super::Stage;
use crate::peer::{Kind, Reply, connect, header, literal};
use crate::scene::{self, HTTP};

const CLOSED: u16 = 9999;

fn ask(stage: &Stage<'_>, family: Family, authority: &str) -> Reply {
    let mut tunnels = stage.tunnels(family);
    tunnels.request(1, &connect(authority)).unwrap();
    tunnels.reply(1)
}

/// Destinations with the answer to each.
fn destinations(world: &World, victim: &Host, family: Family) -> Vec<(&'static str, String, u16)> {
    let own = |port| victim.at(family, port).to_string();
    let other = |host: &Host| host.at(family, HTTP).to_string();
    vec![
        ("a pod of the other node", other(world.pod("a", 0)), 400),
        ("another pod of this node", other(world.pod("b", 1)), 400),
        ("the host outside", other(world.outside()), 400),
        ("IPv4 loopback", "127.0.0.1:8080".to_owned(), 400),
        ("IPv6 loopback", "[::1]:8080".to_owned(), 400),
        ("any address", "0.0.0.0:8080".to_owned(), 400),
        ("the proxy's outbound port", own(15001), 400),
        ("the proxy's inbound port", own(15006), 400),
        ("the proxy's tunnel port", own(15008), 400),
        ("a strange host name", "b-0.example:8080".to_owned(), 400),
        (
            "the service of another pod",
            "b-1.default.svc.cluster.local:8080".to_owned(),
            400,
        ),
        (
            "its service on a port that this has not",
            "b-0.default.svc.cluster.local:1".to_owned(),
            400,
        ),
        // As who comes through a network gateway asks for it.
        (
            "its own service",
            "b-0.default.svc.cluster.local:80".to_owned(),
            200,
        ),
        ("a port without a listener", own(CLOSED), 503),
        ("the application", own(HTTP), 200),
    ]
}

const NONSENSE: [&str; 7] = [
    "nonsense",
    "10.42.1.10",
    "10.42.1.10:99999",
    "",
    ":8080",
    "a b:1",
    "[::1:80",
];

#[test]
fn a_tunnel_leads_nowhere_but_to_the_applications_of_the_pod() {
    let world = World::two_nodes().unwrap();
    let mut stage = Stage::set(&world);
    for family in Family::BOTH {
        for (name, authority, status) in destinations(&world, stage.victim, family) {
            let reply = ask(&stage, family, &authority);
            assert_eq!(reply, Reply::Status(status), "{name}: {authority}");
        }
        for nonsense in NONSENSE {
            let reply = ask(&stage, family, nonsense);
            let refused = matches!(
                reply,
                Reply::Status(400) | Reply::Reset(_) | Reply::GoAway(_)
            );
            assert!(refused, "{nonsense:?}: {reply:?}");
        }
    }
    // The peer of these tests speaks as a proxy does: bytes flow, and flow back.
    let mut tunnels = stage.tunnels(Family::V4);
    tunnels
        .request(1, &connect(&stage.victim.at(Family::V4, HTTP).to_string()))
        .unwrap();
    assert_eq!(tunnels.reply(1), Reply::Status(200));
    tunnels
        .send(
            Kind::Data,
            0,
            1,
            b"GET / HTTP/1.1\r\nx-marker: by-hand\r\n\r\n",
        )
        .unwrap();
    tunnels.read_until(1, "by-hand").unwrap();
    stage.stands();
}

#[test]
fn a_tunnel_that_policy_denies_is_answered_with_401() {
    let world = World::two_nodes().unwrap();
    let mut stage = Stage::set(&world);
    let one = stage.tunnels(Family::V4);
    let rules = json!([[[{ "destinationPorts": [CLOSED] }]]]);
    let policy = Policy::namespace("no-nines", "Deny", rules);
    stage
        .mesh
        .change(|settings| settings.policies = vec![policy.clone()])
        .unwrap();
    scene::eventually("the policy", || {
        scene::listed(stage.mesh.proxy("b"), "policies") == ["no-nines"]
    });
    // Also on a connection that is older than the policy.
    let mut one = one;
    one.request(
        1,
        &connect(&stage.victim.at(Family::V4, CLOSED).to_string()),
    )
    .unwrap();
    assert_eq!(one.reply(1), Reply::Status(401));
    let v6 = stage.victim.at(Family::V6, CLOSED).to_string();
    assert_eq!(ask(&stage, Family::V6, &v6), Reply::Status(401));
    stage.stands();
}

#[test]
fn what_is_no_connect_is_no_tunnel() {
    let world = World::two_nodes().unwrap();
    let mut stage = Stage::set(&world);
    let app = stage.victim.at(Family::V4, HTTP).to_string();
    let path = |method| {
        header(&[
            (":method", method),
            (":scheme", "https"),
            (":path", "/"),
            (":authority", &app),
        ])
    };
    let mut giant = connect(&app);
    giant.extend(literal(b"x-giant", &vec![b'x'; 200_000]));
    let mut many = connect(&app);
    many.extend(literal(b"x", b"y").repeat(10_000));
    let cases = [
        ("GET", path("GET")),
        ("POST", path("POST")),
        ("CONNECT with a path", path("CONNECT")),
        (
            "extended CONNECT",
            [path("CONNECT"), header(&[(":protocol", "websocket")])].concat(),
        ),
        ("no method", header(&[(":authority", &app)])),
        ("no authority", header(&[(":method", "CONNECT")])),
        (
            "two authorities",
            [connect(&app), header(&[(":authority", &app)])].concat(),
        ),
        (
            "upper case",
            [connect(&app), literal(b"X-Upper", b"1")].concat(),
        ),
        (
            "a line feed",
            [connect(&app), literal(b"x", b"a\r\nb: c")].concat(),
        ),
        ("a giant header", giant),
        ("ten thousand headers", many),
        ("no HPACK", vec![0xff; 300]),
        ("an empty block", Vec::new()),
    ];
    for (name, block) in cases {
        let mut tunnels = stage.tunnels(Family::V4);
        let reply = tunnels.request(1, &block).map(|()| tunnels.reply(1));
        let accepted = matches!(&reply, Ok(Reply::Status(200..=299)));
        assert!(!accepted, "{name}: {reply:?}");
        if name == "GET" || name == "POST" {
            assert_eq!(reply.unwrap(), Reply::Status(400), "{name}");
        }
    }
    stage.stands();
}

#[test]
fn frames_out_of_place_end_the_connection_and_nothing_else() {
    let world = World::two_nodes().unwrap();
    let mut stage = Stage::set(&world);
    let app = stage.victim.at(Family::V4, HTTP).to_string();
    let cases: [(&str, Kind, u32, Vec<u8>); 5] = [
        ("an even stream", Kind::Headers, 2, connect(&app)),
        ("stream zero", Kind::Headers, 0, connect(&app)),
        ("data of no stream", Kind::Data, 7, vec![0; 100]),
        ("settings of odd length", Kind::Settings, 0, vec![0; 5]),
        (
            "a continuation of nothing",
            Kind::Continuation,
            1,
            vec![0; 9],
        ),
    ];
    for (name, kind, stream, body) in cases {
        let mut tunnels = stage.tunnels(Family::V4);
        tunnels.send(kind, 4, stream, &body).unwrap();
        let reply = tunnels.reply(stream.max(1));
        assert!(
            matches!(
                reply,
                Reply::GoAway(1..) | Reply::Reset(_) | Reply::Closed(_)
            ),
            "{name}: {reply:?}"
        );
    }
    let mut tunnels = stage.tunnels(Family::V4);
    tunnels.raw(&[0xff; 4096]).unwrap();
    let reply = tunnels.reply(1);
    assert!(
        matches!(reply, Reply::GoAway(_) | Reply::Closed(_)),
        "garbage after TLS: {reply:?}"
    );
    stage.stands();
}
