//! Beside the rules that Istio's node agent puts into pods: everything goes as it does without
//! them, and what they redirect is judged by what was dialled.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Socket, Type};
use ztunnel_tests::net::{Family, Host, Rules, World};
use ztunnel_tests::proxy::{Mesh, Policy};
use ztunnel_tests::traffic::Kind;
use ztunnel_tests::traffic::dns::{self, DNS, Resolver, Way};

use crate::scene::{self, HTTP, LIMIT, answered, answered_soon, reset};

const OTHER: u16 = 9000;

fn install(world: &World, rules: Rules) {
    for pod in world.nodes().iter().flat_map(|node| &node.pods) {
        rules.install(pod).unwrap();
    }
}

/// Calls more often than the first of a kind, which the proxy carries in any case.
#[track_caller]
fn known_as_itself(client: &Host, family: Family, to: SocketAddr) {
    for _ in 0..3 {
        let answer = answered(client, to);
        assert_eq!(answer.peer.ip().to_canonical(), client.address(family));
    }
}

#[track_caller]
fn everywhere(world: &World) {
    let (one, two, far) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let outside = world.outside();
    for family in Family::BOTH {
        // In tunnels, there and back; inside the node; out of the mesh; into it.
        for (client, server) in [
            (one, far),
            (far, one),
            (one, two),
            (two, one),
            (one, outside),
        ] {
            known_as_itself(client, family, server.at(family, HTTP));
        }
        for server in [far, two] {
            known_as_itself(one, family, Mesh::service(server).at(family, 80));
        }
        let server = far.at(family, HTTP);
        for _ in 0..3 {
            let answer = answered(outside, server);
            // It has an address on each of its links.
            assert_eq!(answer.peer.ip().to_canonical(), answer.client_local.ip());
            assert_eq!(answer.local.ip().to_canonical(), server.ip());
        }
        // To itself, by every name.
        let loopback: IpAddr = match family {
            Family::V4 => [127, 0, 0, 1].into(),
            Family::V6 => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        let service = Mesh::service(one).at(family, 80);
        for to in [
            one.at(family, HTTP),
            SocketAddr::new(loopback, HTTP),
            service,
        ] {
            answered(one, to);
            answered(one, to);
        }
    }
}

fn everything_goes_as_without(rules: Rules) {
    let world = World::two_nodes().unwrap();
    install(&world, rules);
    let mut mesh = Mesh::start(&world).unwrap();
    everything_goes(&world, &mut mesh);
}

fn everything_goes(world: &World, mesh: &mut Mesh<'_>) {
    let pods = world.nodes().iter().flat_map(|node| &node.pods);
    let hosts = pods.chain([world.outside()]);
    let _servers: Vec<_> = hosts
        .map(|host| host.serve(Kind::Http, HTTP).unwrap())
        .collect();
    everywhere(world);
    let server = world.pod("b", 0);
    for family in Family::BOTH {
        let dialled = format!("dst.addr={}", server.at(family, HTTP));
        // A line is written when its connection has ended, a moment after the client is done.
        scene::eventually("plaintext in the access log, by what was dialled", || {
            let log = mesh.proxy("b").log();
            let arrived = |line: &str| line.contains(&dialled) && !line.contains("src.identity");
            log.lines().any(arrived)
        });
    }
    for proxy in mesh.proxies() {
        assert!(!proxy.log().contains(":15006 "), "{}", proxy.log());
    }
    scene::unharmed(mesh);
}

#[test]
fn everything_goes_as_without_rules_of_the_old_iptables() {
    everything_goes_as_without(Rules::Legacy);
}

#[test]
fn everything_goes_as_without_rules_of_iptables_on_nf_tables() {
    everything_goes_as_without(Rules::IptablesNft);
}

#[test]
fn everything_goes_as_without_rules_of_nft() {
    everything_goes_as_without(Rules::Nft);
}

/// In a container that cannot have the programs the rules are all there is.
#[test]
fn without_programs_the_rules_capture() {
    let world = World::two_nodes().unwrap();
    install(&world, Rules::IptablesNft);
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| {
            let by = ("by".to_owned(), json!("rules"));
            settings.capture.extra.extend([by]);
        })
        .start()
        .unwrap();
    everything_goes(&world, &mut mesh);
    for proxy in mesh.proxies() {
        assert!(
            !proxy.settings.capture.bpf_directory.exists(),
            "it has pins"
        );
    }
    // Without the rules nothing captures; with them and without a proxy everything is refused.
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    mesh.proxy("a").kill().unwrap();
    for family in Family::BOTH {
        let outcome = scene::call(client, server.at(family, HTTP));
        assert!(scene::is_refused(&outcome), "{outcome:?}");
    }
}

/// What the container's resolver answers, and what one answers that it does not know.
const ANSWERS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 77), Ipv4Addr::new(192, 0, 2, 78)];

/// The container's resolver outside by IPv4, and another one by IPv6.
fn resolvers(world: &World) -> [Resolver; 2] {
    let outside = world.outside();
    [Family::V4, Family::V6].map(|family| {
        let answer = ANSWERS[usize::from(family == Family::V6)];
        Resolver::serve(outside, outside.at(family, DNS), answer, Duration::ZERO).unwrap()
    })
}

fn names_come_by(rules: Rules) {
    let world = World::two_nodes().unwrap();
    install(&world, rules);
    let resolvers = resolvers(&world);
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| {
            let by = ("by".to_owned(), json!("rules"));
            settings.capture.extra.extend([by]);
        })
        .resolver(world.outside().address(Family::V4))
        .start()
        .unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let service = [IpAddr::V4(Mesh::service(server).v4)];
    let mut asked = 0.0;
    for family in Family::BOTH {
        let at = world.outside().at(family, DNS);
        for way in Way::ALL {
            let told = |name: &str| dns::ask(client, at, way, name, LIMIT).unwrap();
            assert_eq!(
                told(&server.name),
                service,
                "{rules:?}, {family:?}, {way:?}"
            );
            let foreign = format!("{family:?}.{way:?}.example.com");
            // Of a connection it is known where it was to go.
            let other = family == Family::V6 && way == Way::Connection;
            let answer = [IpAddr::V4(ANSWERS[usize::from(other)])];
            assert_eq!(told(&foreign), answer, "{rules:?}, {family:?}, {way:?}");
            asked += 2.0;
        }
    }
    assert_eq!(resolvers.map(|resolver| resolver.asked().len()), [5, 1]);
    let metrics = mesh.proxy("a").metrics().unwrap();
    assert_eq!(metrics.sum("istio_dns_requests_total", &[]), asked);
    scene::unharmed(&mut mesh);
}

#[test]
fn without_programs_names_come_by_rules_of_the_old_iptables() {
    names_come_by(Rules::Legacy);
}

#[test]
fn without_programs_names_come_by_rules_of_iptables_on_nf_tables() {
    names_come_by(Rules::IptablesNft);
}

#[test]
fn without_programs_names_come_by_rules_of_nft() {
    names_come_by(Rules::Nft);
}

/// A socket that was connected before the pod was enrolled passes no program. The rules redirect
/// what it asks, whether they were there before the proxy or not.
#[test]
fn what_the_rules_redirect_past_the_programs_is_answered() {
    let world = World::two_nodes().unwrap();
    let _resolvers = resolvers(&world);
    let at = world.outside().at(Family::V4, DNS);
    let (early, late, server) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let sockets = [early, late].map(|pod| {
        pod.enter(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.connect(at).unwrap();
            socket
        })
    });
    Rules::IptablesNft.install(early).unwrap();
    let mut mesh = Mesh::builder(&world).resolver(at.ip()).start().unwrap();
    Rules::IptablesNft.install(late).unwrap();
    let service = [IpAddr::V4(Mesh::service(server).v4)];
    let told = |socket: &UdpSocket, name: &str| dns::ask_over(socket, name, LIMIT);
    for socket in &sockets {
        assert_eq!(told(socket, &server.name).unwrap(), service);
    }
    let foreign = [IpAddr::V4(ANSWERS[0])];
    assert_eq!(told(&sockets[0], "www.example.com").unwrap(), foreign);
    scene::eventually("the pod has been looked into again", || {
        told(&sockets[1], "www.example.org").is_ok_and(|found| found == foreign)
    });
    scene::unharmed(&mut mesh);
}

#[test]
fn policies_judge_the_port_that_was_dialled() {
    let world = World::two_nodes().unwrap();
    install(&world, Rules::IptablesNft);
    let ports = json!([[[{ "destinationPorts": [OTHER] }]]]);
    let mut mesh = Mesh::builder(&world)
        .policy(Policy::namespace("deny-port", "Deny", ports))
        .start()
        .unwrap();
    let server = world.pod("b", 0);
    let _allowed = server.serve(Kind::Http, HTTP).unwrap();
    let refused = server.serve(Kind::Http, OTHER).unwrap();
    for family in Family::BOTH {
        for client in [world.outside(), world.pod("a", 0), world.pod("b", 1)] {
            answered(client, server.at(family, HTTP));
            reset(client, server.at(family, OTHER));
        }
    }
    assert_eq!(refused.accepted(), 0);
    scene::unharmed(&mut mesh);
}

#[test]
fn the_ports_of_the_proxy_lead_nowhere() {
    let world = World::two_nodes().unwrap();
    install(&world, Rules::IptablesNft);
    let mut mesh = Mesh::start(&world).unwrap();
    let server = world.pod("b", 0);
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    for family in Family::BOTH {
        for port in [15001, 15006] {
            reset(world.outside(), server.at(family, port));
        }
        answered(world.outside(), server.at(family, HTTP));
    }
    scene::unharmed(&mut mesh);
}

/// What kubelet's probes come from, once the node has translated their source.
const PROBE: [&str; 2] = ["169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"];

#[test]
fn probes_of_the_node_pass_whatever_policy_says() {
    let world = World::two_nodes().unwrap();
    install(&world, Rules::IptablesNft);
    let everybody = json!([[[{ "notPrincipals": [{ "presence": {} }] }]]]);
    let mut mesh = Mesh::builder(&world)
        .policy(Policy::namespace("strict", "Deny", everybody))
        .start()
        .unwrap();
    let (node, pod) = (&world.node("b").host, world.pod("b", 0));
    let http = pod.serve(Kind::Http, HTTP).unwrap();
    for (family, probe) in Family::BOTH.into_iter().zip(PROBE) {
        let to = pod.at(family, HTTP);
        reset(node, to);
        let source: IpAddr = probe.parse().unwrap();
        node.enter(|| {
            let mut add = Command::new("ip");
            assert!(
                add.args(["addr", "add", probe, "dev", "lo"])
                    .status()
                    .unwrap()
                    .success()
            );
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            // An IPv6 address cannot be used before it is known to be nobody else's.
            scene::eventually("the address can be used", || {
                socket.bind(&SocketAddr::new(source, 0).into()).is_ok()
            });
            socket.connect_timeout(&to.into(), LIMIT).unwrap();
        });
    }
    scene::eventually("both probes have arrived", || http.accepted() == 2);
    scene::unharmed(&mut mesh);
}

#[test]
fn rules_may_come_and_go_while_the_pod_is_served() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let pods = world.nodes().iter().flat_map(|node| &node.pods);
    let hosts = pods.chain([world.outside()]);
    let _servers: Vec<_> = hosts
        .map(|host| host.serve(Kind::Http, HTTP).unwrap())
        .collect();
    // The kernel carries what is known, until the rules hide it.
    everywhere(&world);
    for rules in Rules::ALL {
        install(&world, rules);
        let pods = world.nodes().iter().flat_map(|node| &node.pods);
        for (pod, family) in pods.flat_map(|pod| Family::BOTH.map(|family| (pod, family))) {
            for client in [world.pod("a", 0), world.pod("b", 0), world.outside()] {
                answered_soon(client, pod.at(family, HTTP));
            }
        }
        everywhere(&world);
        for pod in world.nodes().iter().flat_map(|node| &node.pods) {
            rules.remove(pod).unwrap();
        }
        everywhere(&world);
    }
    scene::unharmed(&mut mesh);
}

/// With the last of the rules connection tracking ends in the pod, and with it the translation of
/// what was redirected: the kernel answers its next segment with a reset. What came in a tunnel was
/// never translated.
#[test]
fn when_the_rules_go_tunnels_go_on_and_what_was_redirected_is_reset() {
    let world = World::two_nodes().unwrap();
    install(&world, Rules::Legacy);
    let mut mesh = Mesh::start(&world).unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let to = server.at(Family::V4, HTTP);
    let listener = server.enter(|| TcpListener::bind(to)).unwrap();
    let [(mut tunnelled, mut far), (mut redirected, _far)] =
        [client, world.outside()].map(|from| {
            let near = from.enter(|| TcpStream::connect(to)).unwrap();
            near.set_read_timeout(Some(LIMIT)).unwrap();
            (near, listener.accept().unwrap().0)
        });
    Rules::Legacy.remove(server).unwrap();
    far.set_read_timeout(Some(LIMIT)).unwrap();
    tunnelled.write_all(b"still here").unwrap();
    let mut heard = [0; 10];
    far.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still here");
    redirected.write_all(b"anybody here?").unwrap();
    let outcome = redirected.read(&mut heard).map_err(|error| error.kind());
    assert_eq!(outcome, Err(std::io::ErrorKind::ConnectionReset));
    scene::unharmed(&mut mesh);
}
