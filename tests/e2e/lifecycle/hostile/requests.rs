//! Peers with a valid certificate that send forbidden requests.

use serde_json::json;
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::Policy;

use super::AttackSetup;
use crate::assertions::{self, HTTP};
use crate::peer::{Kind, Reply, connect, header, literal};

const CLOSED: u16 = 9999;

fn send_request(setup: &AttackSetup<'_>, family: Family, authority: &str) -> Reply {
    let mut tunnels = setup.tunnels(family);
    tunnels.request(1, &connect(authority)).unwrap();
    tunnels.reply(1)
}

/// Destinations and the expected status.
fn destinations(
    world: &World,
    attacked_pod: &Host,
    family: Family,
) -> Vec<(&'static str, String, u16)> {
    let own = |port| attacked_pod.at(family, port).to_string();
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
        ("an unknown host name", "b-0.example:8080".to_owned(), 400),
        (
            "the service of another pod",
            "b-1.default.svc.cluster.local:8080".to_owned(),
            400,
        ),
        (
            "its service on a port that it does not have",
            "b-0.default.svc.cluster.local:1".to_owned(),
            400,
        ),
        // As requested through a network gateway.
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
fn a_tunnel_reaches_only_the_applications_of_the_pod() {
    let world = World::two_nodes().unwrap();
    let mut setup = AttackSetup::new(&world);
    for family in Family::BOTH {
        for (name, authority, status) in destinations(&world, setup.attacked_pod, family) {
            let reply = send_request(&setup, family, &authority);
            assert_eq!(reply, Reply::Status(status), "{name}: {authority}");
        }
        for nonsense in NONSENSE {
            let reply = send_request(&setup, family, nonsense);
            let refused = matches!(
                reply,
                Reply::Status(400) | Reply::Reset(_) | Reply::GoAway(_)
            );
            assert!(refused, "{nonsense:?}: {reply:?}");
        }
    }
    // A valid request transfers data in both directions.
    let mut tunnels = setup.tunnels(Family::V4);
    tunnels
        .request(
            1,
            &connect(&setup.attacked_pod.at(Family::V4, HTTP).to_string()),
        )
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
    setup.assert_still_serving();
}

#[test]
fn a_tunnel_that_policy_denies_is_answered_with_401() {
    let world = World::two_nodes().unwrap();
    let mut setup = AttackSetup::new(&world);
    let one = setup.tunnels(Family::V4);
    let rules = json!([[[{ "destinationPorts": [CLOSED] }]]]);
    let policy = Policy::namespace("no-nines", "Deny", rules);
    setup
        .mesh
        .change(|settings| settings.policies = vec![policy.clone()])
        .unwrap();
    assertions::eventually("the policy", || {
        assertions::listed(setup.mesh.proxy("b"), "policies") == ["no-nines"]
    });
    // Also on a connection that was opened before the policy.
    let mut one = one;
    one.request(
        1,
        &connect(&setup.attacked_pod.at(Family::V4, CLOSED).to_string()),
    )
    .unwrap();
    assert_eq!(one.reply(1), Reply::Status(401));
    let v6 = setup.attacked_pod.at(Family::V6, CLOSED).to_string();
    assert_eq!(send_request(&setup, Family::V6, &v6), Reply::Status(401));
    setup.assert_still_serving();
}

#[test]
fn requests_other_than_connect_are_refused() {
    let world = World::two_nodes().unwrap();
    let mut setup = AttackSetup::new(&world);
    let app = setup.attacked_pod.at(Family::V4, HTTP).to_string();
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
        let mut tunnels = setup.tunnels(Family::V4);
        let reply = tunnels.request(1, &block).map(|()| tunnels.reply(1));
        let accepted = matches!(&reply, Ok(Reply::Status(200..=299)));
        assert!(!accepted, "{name}: {reply:?}");
        if name == "GET" || name == "POST" {
            assert_eq!(reply.unwrap(), Reply::Status(400), "{name}");
        }
    }
    setup.assert_still_serving();
}

#[test]
fn unexpected_frames_end_only_their_connection() {
    let world = World::two_nodes().unwrap();
    let mut setup = AttackSetup::new(&world);
    let app = setup.attacked_pod.at(Family::V4, HTTP).to_string();
    let cases: [(&str, Kind, u32, Vec<u8>); 5] = [
        ("an even stream", Kind::Headers, 2, connect(&app)),
        ("stream zero", Kind::Headers, 0, connect(&app)),
        ("data for an idle stream", Kind::Data, 7, vec![0; 100]),
        ("settings of odd length", Kind::Settings, 0, vec![0; 5]),
        (
            "a continuation without headers",
            Kind::Continuation,
            1,
            vec![0; 9],
        ),
    ];
    for (name, kind, stream, body) in cases {
        let mut tunnels = setup.tunnels(Family::V4);
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
    let mut tunnels = setup.tunnels(Family::V4);
    tunnels.raw(&[0xff; 4096]).unwrap();
    let reply = tunnels.reply(1);
    assert!(
        matches!(reply, Reply::GoAway(_) | Reply::Closed(_)),
        "garbage after TLS: {reply:?}"
    );
    setup.assert_still_serving();
}
