//! Policies are enforced at the destination, and a change of them counts for new connections.

use serde_json::{Value, json};
use ztunnel_tests::lane::{Lane, Scene};
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::on_lanes;
use ztunnel_tests::proxy::{Mesh, Policy, Settings, identity};
use ztunnel_tests::traffic::Kind;

use crate::scene::{self, HTTP, MARKER, answered, reset};

const OTHER: u16 = 9000;
const NOBODY: &str = "ALLOW policies apply and none matches";

/// One set of policies and what it means for the connections of two clients to a server.
struct Case {
    policies: Vec<Policy>,
    /// Which of them the server's workload lists.
    listed: &'static [&'static str],
    /// Client and server by their numbers, port, and what the refusal names.
    expected: Vec<(usize, usize, u16, Option<&'static str>)>,
}

fn principal(pod: &Host) -> Value {
    json!({ "exact": identity(pod).trim_start_matches("spiffe://") })
}

fn addresses(pod: &Host) -> Value {
    json!([format!("{}/32", pod.v4), format!("{}/128", pod.v6)])
}

fn matching(one: Value) -> Value {
    json!([[[one]]])
}

fn case(policies: Vec<Policy>, expected: Vec<(usize, usize, u16, Option<&'static str>)>) -> Case {
    Case {
        policies,
        listed: &[],
        expected,
    }
}

fn by_what_the_client_is(scene: &Scene) -> Vec<Case> {
    let one = scene.client();
    let deny = |name, rule| vec![Policy::namespace(name, "Deny", matching(rule))];
    let allow = |name, rule| vec![Policy::namespace(name, "Allow", matching(rule))];
    vec![
        case(
            deny("deny-principal", json!({ "principals": [principal(one)] })),
            vec![
                (0, 0, HTTP, Some("default/deny-principal")),
                (1, 0, HTTP, None),
            ],
        ),
        case(
            allow("allow-principal", json!({ "principals": [principal(one)] })),
            vec![(0, 0, HTTP, None), (1, 0, HTTP, Some(NOBODY))],
        ),
        case(
            deny(
                "deny-namespace",
                json!({ "namespaces": [{ "exact": "default" }] }),
            ),
            vec![(0, 0, HTTP, Some("default/deny-namespace"))],
        ),
        case(
            allow(
                "allow-stranger",
                json!({ "notNamespaces": [{ "exact": "default" }] }),
            ),
            vec![(0, 0, HTTP, Some(NOBODY))],
        ),
        case(
            deny("deny-source", json!({ "sourceIps": addresses(one) })),
            vec![
                (0, 0, HTTP, Some("default/deny-source")),
                (1, 0, HTTP, None),
            ],
        ),
        case(
            allow(
                "allow-prefix",
                json!({ "principals": [{ "prefix": "cluster.local/ns/default/sa/a" }] }),
            ),
            vec![(0, 0, HTTP, None), (1, 0, HTTP, None)],
        ),
    ]
}

fn by_what_is_called(scene: &Scene) -> Vec<Case> {
    let server = scene.server();
    vec![
        case(
            vec![Policy::namespace(
                "allow-port",
                "Allow",
                matching(json!({ "destinationPorts": [HTTP] })),
            )],
            vec![(0, 0, HTTP, None), (0, 0, OTHER, Some(NOBODY))],
        ),
        case(
            vec![Policy::namespace(
                "deny-other",
                "Deny",
                matching(json!({ "notDestinationPorts": [HTTP] })),
            )],
            vec![
                (0, 0, HTTP, None),
                (0, 0, OTHER, Some("default/deny-other")),
            ],
        ),
        case(
            vec![Policy::namespace(
                "deny-target",
                "Deny",
                matching(json!({ "destinationIps": addresses(server) })),
            )],
            vec![
                (0, 0, HTTP, Some("default/deny-target")),
                (0, 1, HTTP, None),
            ],
        ),
    ]
}

fn by_how_policies_meet(scene: &Scene) -> Vec<Case> {
    let everybody = || json!([[[]]]);
    let one = matching(json!({ "principals": [principal(scene.client())] }));
    let global = Policy {
        scope: "Global".to_owned(),
        ..Policy::namespace("deny-everywhere", "Deny", one.clone())
    };
    let elsewhere = Policy {
        namespace: "elsewhere".to_owned(),
        ..Policy::namespace("deny-elsewhere", "Deny", one.clone())
    };
    vec![
        case(
            vec![
                Policy::namespace("allow-all", "Allow", everybody()),
                Policy::namespace("deny-one", "Deny", one.clone()),
            ],
            vec![(0, 0, HTTP, Some("default/deny-one")), (1, 0, HTTP, None)],
        ),
        case(
            vec![Policy::namespace("allow-nothing", "Allow", json!([]))],
            vec![(0, 0, HTTP, Some(NOBODY)), (1, 1, HTTP, Some(NOBODY))],
        ),
        Case {
            policies: vec![Policy::selector("deny-here", "Deny", one)],
            listed: &["default/deny-here"],
            expected: vec![(0, 0, HTTP, Some("default/deny-here")), (0, 1, HTTP, None)],
        },
        case(
            vec![global],
            vec![(0, 1, HTTP, Some("default/deny-everywhere"))],
        ),
        case(vec![elsewhere], vec![(0, 0, HTTP, None)]),
    ]
}

/// Puts policies in force by rewriting the settings of running proxies.
fn adopt(mesh: &mut Mesh<'_>, server: &str, case: &Case) {
    let set = |settings: &mut Settings| {
        settings.policies.clone_from(&case.policies);
        for workload in settings
            .workloads
            .iter_mut()
            .filter(|one| one.name == server)
        {
            workload.authorization_policies =
                case.listed.iter().map(|key| (*key).to_owned()).collect();
        }
    };
    mesh.change(set).unwrap();
    let mut wanted: Vec<_> = case
        .policies
        .iter()
        .map(|policy| policy.name.clone())
        .collect();
    wanted.sort();
    for proxy in mesh.proxies() {
        scene::eventually("the change of policies", || {
            let mut found = scene::listed(proxy, "policies");
            found.sort();
            found == wanted
        });
    }
}

fn check(scene: &Scene, mesh: &mut Mesh<'_>, cases: &[Case]) {
    for case in cases {
        adopt(mesh, &scene.server().name, case);
        for (client, server, port, refusal) in &case.expected {
            let (client, server) = (scene.clients()[*client], scene.servers()[*server]);
            for family in Family::BOTH {
                let to = server.at(family, *port);
                match refusal {
                    None => drop(scene.get_from(client, to, MARKER).unwrap()),
                    Some(name) => refused(scene.lane(), mesh, client, to, name),
                }
            }
        }
    }
    scene::unharmed(mesh);
}

/// The client sees a reset, the destination's log names the policy, both ends count a denial.
fn refused(lane: Lane, mesh: &mut Mesh<'_>, client: &Host, to: std::net::SocketAddr, name: &str) {
    let before = denials(lane, mesh);
    let lines = log_lines(lane, mesh, &["denied by", name]);
    reset(client, to);
    scene::eventually("a denial in the metrics of both ends", || {
        denials(lane, mesh)
            .iter()
            .zip(&before)
            .all(|(now, before)| *now == before + 1.0)
    });
    scene::eventually("a line that names the policy", || {
        log_lines(lane, mesh, &["denied by", name]) > lines
    });
}

fn log_lines(lane: Lane, mesh: &mut Mesh<'_>, words: &[&str]) -> usize {
    let log = mesh.proxy(lane.server_node()).log();
    log.lines()
        .filter(|line| words.iter().all(|word| line.contains(word)))
        .count()
}

/// Denied connections, as the source's node and the destination's node count them.
fn denials(lane: Lane, mesh: &mut Mesh<'_>) -> Vec<f64> {
    let ends = [("a", "source"), (lane.server_node(), "destination")];
    let count = |(node, reporter)| {
        let metrics = mesh.proxy(node).metrics().unwrap();
        let labels = [("reporter", reporter), ("response_flags", "DENY")];
        metrics.sum("istio_tcp_connections_failed_total", &labels)
    };
    ends.map(count).to_vec()
}

fn told(lane: Lane, cases: impl FnOnce(&Scene) -> Vec<Case>) {
    let scene = Scene::set(lane).unwrap();
    let mut mesh = scene.mesh().start().unwrap();
    let _servers = scene
        .servers()
        .map(|pod| [HTTP, OTHER].map(|port| pod.serve(Kind::Http, port).unwrap()));
    check(&scene, &mut mesh, &cases(&scene));
}

on_lanes!(a_client_is_judged_by_identity_namespace_and_address: tunnel, direct);
fn a_client_is_judged_by_identity_namespace_and_address(lane: Lane) {
    told(lane, by_what_the_client_is);
}

on_lanes!(a_connection_is_judged_by_the_port_and_address_it_calls: tunnel, direct);
fn a_connection_is_judged_by_the_port_and_address_it_calls(lane: Lane) {
    told(lane, by_what_is_called);
}

on_lanes!(deny_beats_allow_and_a_policy_counts_only_where_it_applies: tunnel, direct);
fn deny_beats_allow_and_a_policy_counts_only_where_it_applies(lane: Lane) {
    told(lane, by_how_policies_meet);
}

#[test]
fn a_policy_on_trial_is_logged_and_refuses_nobody() {
    let world = World::two_nodes().unwrap();
    let trial = Policy {
        extra: [("dryRun".to_owned(), json!(true))].into(),
        ..Policy::namespace("trial", "Deny", json!([[[]]]))
    };
    let mut mesh = Mesh::builder(&world).policy(trial).start().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    for family in Family::BOTH {
        answered(client, server.at(family, HTTP));
        let client = client.address(family).to_string();
        scene::eventually("a line about the policy in dry-run mode", || {
            let words = ["dry-run", "default/trial", "matched=true", &client];
            log_lines(Lane::Tunnel, &mut mesh, &words) == 1
        });
    }
    assert_eq!(denials(Lane::Tunnel, &mut mesh), [0.0, 0.0]);
}
