//! The rules of Istio's node agent in the pods: all connections work as without them, and
//! redirected connections are authorized by the dialled destination.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Socket, Type};
use ztunnel_tests::net::{Family, Host, Rules, World};
use ztunnel_tests::proxy::{Mesh, Policy};
use ztunnel_tests::traffic::dns::{self, DNS, Resolver, Transport};
use ztunnel_tests::traffic::{self, IoMode, Kind, Stream};

use crate::assertions::{self, HTTP, LIMIT, expect_answer, reset, wait_for_answer};

const OTHER: u16 = 9000;

fn install(world: &World, rules: Rules) {
    for pod in world.nodes().iter().flat_map(|node| &node.pods) {
        rules.install(pod).unwrap();
    }
}

/// Sends several requests, so that both the proxy and the fast path carry one.
#[track_caller]
fn assert_source_address(client: &Host, family: Family, to: SocketAddr) {
    for _ in 0..3 {
        let answer = expect_answer(client, to);
        assert_eq!(answer.peer.ip().to_canonical(), client.address(family));
    }
}

#[track_caller]
fn check_all_paths(world: &World) {
    let (one, two, far) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    let outside = world.outside();
    for family in Family::BOTH {
        // In tunnels in both directions, inside the node, out of the mesh, and into it.
        for (client, server) in [
            (one, far),
            (far, one),
            (one, two),
            (two, one),
            (one, outside),
        ] {
            assert_source_address(client, family, server.at(family, HTTP));
        }
        for server in [far, two] {
            assert_source_address(one, family, Mesh::service(server).at(family, 80));
        }
        let server = far.at(family, HTTP);
        for _ in 0..3 {
            let answer = expect_answer(outside, server);
            // The host outside has an address on each of its links.
            assert_eq!(answer.peer.ip().to_canonical(), answer.client_local.ip());
            assert_eq!(answer.local.ip().to_canonical(), server.ip());
        }
        // To itself, by each of its addresses.
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
            expect_answer(one, to);
            expect_answer(one, to);
        }
    }
}

fn check_with_programs_and_rules(rules: Rules) {
    let world = World::two_nodes().unwrap();
    install(&world, rules);
    let mut mesh = Mesh::start(&world).unwrap();
    check_mesh(&world, &mut mesh);
}

fn check_mesh(world: &World, mesh: &mut Mesh<'_>) {
    let pods = world.nodes().iter().flat_map(|node| &node.pods);
    let hosts = pods.chain([world.outside()]);
    let _servers: Vec<_> = hosts
        .map(|host| host.serve(Kind::Http, HTTP).unwrap())
        .collect();
    check_all_paths(world);
    let server = world.pod("b", 0);
    for family in Family::BOTH {
        let dialled = format!("dst.addr={}", server.at(family, HTTP));
        // The line is written after the connection has ended, shortly after the client has
        // finished.
        assertions::eventually(
            "plaintext connections in the access log with the dialled address",
            || {
                let log = mesh.proxy("b").log();
                let arrived =
                    |line: &str| line.contains(&dialled) && !line.contains("src.identity");
                log.lines().any(arrived)
            },
        );
    }
    for proxy in mesh.proxies() {
        assert!(!proxy.log().contains(":15006 "), "{}", proxy.log());
    }
    assertions::assert_all_running(mesh);
}

#[test]
fn connections_work_beside_rules_of_iptables_legacy() {
    check_with_programs_and_rules(Rules::Legacy);
}

#[test]
fn connections_work_beside_rules_of_iptables_nft() {
    check_with_programs_and_rules(Rules::IptablesNft);
}

#[test]
fn connections_work_beside_rules_of_nft() {
    check_with_programs_and_rules(Rules::Nft);
}

/// In a container that cannot load the eBPF programs, only the rules capture.
#[test]
fn rules_capture_without_programs() {
    let world = World::two_nodes().unwrap();
    install(&world, Rules::IptablesNft);
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| {
            let by = ("by".to_owned(), json!("rules"));
            settings.capture.extra.extend([by]);
        })
        .start()
        .unwrap();
    check_mesh(&world, &mut mesh);
    for proxy in mesh.proxies() {
        assert!(
            !proxy.settings.capture.bpf_directory.exists(),
            "the proxy has pins"
        );
    }
    // Without the rules nothing is captured. With rules and without a proxy, every connection is
    // refused.
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    mesh.proxy("a").kill().unwrap();
    for family in Family::BOTH {
        let outcome = assertions::call(client, server.at(family, HTTP));
        assert!(assertions::is_refused(&outcome), "{outcome:?}");
    }
}

/// The answers of the container's resolver and of another resolver.
const ANSWERS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 77), Ipv4Addr::new(192, 0, 2, 78)];

/// The container's resolver at the IPv4 address of the host outside, and another one at its IPv6
/// address.
fn resolvers(world: &World) -> [Resolver; 2] {
    let outside = world.outside();
    [Family::V4, Family::V6].map(|family| {
        let answer = ANSWERS[usize::from(family == Family::V6)];
        Resolver::serve(outside, outside.at(family, DNS), answer, Duration::ZERO).unwrap()
    })
}

fn check_dns(rules: Rules) {
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
    let mut queries = 0.0;
    for family in Family::BOTH {
        let at = world.outside().at(family, DNS);
        for transport in Transport::ALL {
            let resolve = |name: &str| dns::resolve(client, at, transport, name, LIMIT).unwrap();
            assert_eq!(
                resolve(&server.name),
                service,
                "{rules:?}, {family:?}, {transport:?}"
            );
            let foreign = format!("{family:?}.{transport:?}.example.com");
            // The destination of a TCP connection is known.
            let other = family == Family::V6 && transport == Transport::Connection;
            let answer = [IpAddr::V4(ANSWERS[usize::from(other)])];
            assert_eq!(
                resolve(&foreign),
                answer,
                "{rules:?}, {family:?}, {transport:?}"
            );
            queries += 2.0;
        }
    }
    assert_eq!(resolvers.map(|resolver| resolver.queries().len()), [5, 1]);
    let metrics = mesh.proxy("a").metrics().unwrap();
    assert_eq!(metrics.sum("istio_dns_requests_total", &[]), queries);
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn dns_works_with_rules_of_iptables_legacy_only() {
    check_dns(Rules::Legacy);
}

#[test]
fn dns_works_with_rules_of_iptables_nft_only() {
    check_dns(Rules::IptablesNft);
}

#[test]
fn dns_works_with_rules_of_nft_only() {
    check_dns(Rules::Nft);
}

/// A socket that was connected before the pod was enrolled does not pass the programs. The rules
/// redirect its queries, whether they were installed before the proxy started or later.
#[test]
fn queries_that_only_the_rules_redirect_are_answered() {
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
    let resolve = |socket: &UdpSocket, name: &str| dns::resolve_over(socket, name, LIMIT);
    for socket in &sockets {
        assert_eq!(resolve(socket, &server.name).unwrap(), service);
    }
    let foreign = [IpAddr::V4(ANSWERS[0])];
    assert_eq!(resolve(&sockets[0], "www.example.com").unwrap(), foreign);
    assertions::eventually("the pod has been checked again", || {
        resolve(&sockets[1], "www.example.org").is_ok_and(|found| found == foreign)
    });
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn policies_apply_to_the_dialled_port() {
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
            expect_answer(client, server.at(family, HTTP));
            reset(client, server.at(family, OTHER));
        }
    }
    assert_eq!(refused.accepted(), 0);
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn connections_to_the_ports_of_the_proxy_are_refused() {
    let world = World::two_nodes().unwrap();
    install(&world, Rules::IptablesNft);
    let mut mesh = Mesh::start(&world).unwrap();
    let server = world.pod("b", 0);
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    for family in Family::BOTH {
        for port in [15001, 15006] {
            reset(world.outside(), server.at(family, port));
        }
        expect_answer(world.outside(), server.at(family, HTTP));
    }
    assertions::assert_all_running(&mut mesh);
}

/// The sources of kubelet's probes after the node's translation.
const PROBE: [&str; 2] = ["169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"];

#[test]
fn kubelet_probes_bypass_policies() {
    let world = World::two_nodes().unwrap();
    install(&world, Rules::IptablesNft);
    let no_principal = json!([[[{ "notPrincipals": [{ "presence": {} }] }]]]);
    let mut mesh = Mesh::builder(&world)
        .policy(Policy::namespace("strict", "Deny", no_principal))
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
            // A new IPv6 address cannot be used before duplicate address detection has finished.
            assertions::eventually("the address can be used", || {
                socket.bind(&SocketAddr::new(source, 0).into()).is_ok()
            });
            socket.connect_timeout(&to.into(), LIMIT).unwrap();
        });
    }
    assertions::eventually("both probes have arrived", || http.accepted() == 2);
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn rules_may_be_added_and_removed_while_the_pod_is_served() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::start(&world).unwrap();
    let pods = world.nodes().iter().flat_map(|node| &node.pods);
    let hosts = pods.chain([world.outside()]);
    let _servers: Vec<_> = hosts
        .map(|host| host.serve(Kind::Http, HTTP).unwrap())
        .collect();
    // The fast path carries connections with an entry until the rules redirect them.
    check_all_paths(&world);
    for rules in Rules::ALL {
        install(&world, rules);
        let pods = world.nodes().iter().flat_map(|node| &node.pods);
        for (pod, family) in pods.flat_map(|pod| Family::BOTH.map(|family| (pod, family))) {
            for client in [world.pod("a", 0), world.pod("b", 0), world.outside()] {
                wait_for_answer(client, pod.at(family, HTTP));
            }
        }
        check_all_paths(&world);
        for pod in world.nodes().iter().flat_map(|node| &node.pods) {
            rules.remove(pod).unwrap();
        }
        check_all_paths(&world);
    }
    assertions::assert_all_running(&mut mesh);
}

/// Without rules, connection tracking would end in the pod, and with it the translation of redirected
/// connections: the proxy keeps it alive. Tunnel connections were never translated.
#[test]
fn connections_outlive_the_removal_of_the_rules() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    for rules in Rules::ALL {
        rules.install(server).unwrap();
        let mut mesh = Mesh::start(&world).unwrap();
        let to = server.at(Family::V4, HTTP);
        let listener = server.enter(|| TcpListener::bind(to)).unwrap();
        let mut connections = [client, world.outside()].map(|from| {
            let near = from.enter(|| TcpStream::connect(to)).unwrap();
            let far = listener.accept().unwrap().0;
            for end in [&near, &far] {
                end.set_read_timeout(Some(LIMIT)).unwrap();
            }
            (near, far)
        });
        rules.remove(server).unwrap();
        for (near, far) in &mut connections {
            let mut received = [0; 10];
            near.write_all(b"still open").unwrap();
            far.read_exact(&mut received).unwrap();
            assert_eq!(&received, b"still open");
            far.write_all(b"here, too.").unwrap();
            near.read_exact(&mut received).unwrap();
            assert_eq!(&received, b"here, too.");
        }
        assertions::assert_all_running(&mut mesh);
    }
}

/// The node agent puts its rules into a pod that runs already. For connection tracking, which begins
/// with the rules, the next packet of an older connection must not be a new connection.
#[test]
fn connections_that_are_older_than_the_rules_go_on() {
    let world = World::two_nodes().unwrap();
    let (client, server) = (world.outside(), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    let dial = |family| Stream::connect(server.at(family, HTTP), IoMode::Blocking, LIMIT).unwrap();
    let mut open = client.enter(|| Family::BOTH.map(dial));
    for stream in &mut open {
        traffic::get_over(stream, "before", LIMIT).unwrap();
    }
    let mut mesh = Mesh::start(&world).unwrap();
    install(&world, Rules::IptablesNft);
    for stream in &mut open {
        let answer = traffic::get_over(stream, "after", LIMIT).unwrap();
        assert_eq!(answer.marker, "after");
    }
    for family in Family::BOTH {
        expect_answer(client, server.at(family, HTTP));
    }
    assertions::assert_all_running(&mut mesh);
}
