//! Policies are enforced at the destination, and a change of them applies to new connections.

use serde_json::{Value, json};
use ztunnel_tests::data_path::{DataPath, Topology};
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::on_paths;
use ztunnel_tests::proxy::{Mesh, Policy, Settings, identity};
use ztunnel_tests::traffic::Kind;

use crate::assertions::{self, HTTP, MARKER, expect_answer, reset};

const OTHER: u16 = 9000;
const NO_ALLOW_MATCHES: &str = "ALLOW policies apply and none matches";

/// A set of policies, and the expected decisions for connections of two clients to a server.
struct Case {
    policies: Vec<Policy>,
    /// The policies that the server's workload lists.
    listed: &'static [&'static str],
    /// Indices of client and server, the port, and the text in the log of a refusal.
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

fn client_cases(topology: &Topology) -> Vec<Case> {
    let one = topology.client();
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
            vec![(0, 0, HTTP, None), (1, 0, HTTP, Some(NO_ALLOW_MATCHES))],
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
            vec![(0, 0, HTTP, Some(NO_ALLOW_MATCHES))],
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

fn destination_cases(topology: &Topology) -> Vec<Case> {
    let server = topology.server();
    vec![
        case(
            vec![Policy::namespace(
                "allow-port",
                "Allow",
                matching(json!({ "destinationPorts": [HTTP] })),
            )],
            vec![(0, 0, HTTP, None), (0, 0, OTHER, Some(NO_ALLOW_MATCHES))],
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

fn precedence_cases(topology: &Topology) -> Vec<Case> {
    let every_connection = || json!([[[]]]);
    let one = matching(json!({ "principals": [principal(topology.client())] }));
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
                Policy::namespace("allow-all", "Allow", every_connection()),
                Policy::namespace("deny-one", "Deny", one.clone()),
            ],
            vec![(0, 0, HTTP, Some("default/deny-one")), (1, 0, HTTP, None)],
        ),
        case(
            vec![Policy::namespace("allow-nothing", "Allow", json!([]))],
            vec![
                (0, 0, HTTP, Some(NO_ALLOW_MATCHES)),
                (1, 1, HTTP, Some(NO_ALLOW_MATCHES)),
            ],
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

/// Applies policies by rewriting the settings of running proxies.
fn apply_policies(mesh: &mut Mesh<'_>, server: &str, case: &Case) {
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
        assertions::eventually("the change of policies", || {
            let mut found = assertions::listed(proxy, "policies");
            found.sort();
            found == wanted
        });
    }
}

fn check(topology: &Topology, mesh: &mut Mesh<'_>, cases: &[Case]) {
    for case in cases {
        apply_policies(mesh, &topology.server().name, case);
        for (client, server, port, refusal) in &case.expected {
            let (client, server) = (topology.clients()[*client], topology.servers()[*server]);
            for family in Family::BOTH {
                let to = server.at(family, *port);
                match refusal {
                    None => drop(topology.get_from(client, to, MARKER).unwrap()),
                    Some(name) => refused(topology.data_path(), mesh, client, to, name),
                }
            }
        }
    }
    assertions::assert_all_running(mesh);
}

/// Asserts that the client gets a reset, the destination's log contains the policy, and both ends
/// count a denial.
fn refused(
    data_path: DataPath,
    mesh: &mut Mesh<'_>,
    client: &Host,
    to: std::net::SocketAddr,
    name: &str,
) {
    let before = denials(data_path, mesh);
    let lines = log_lines(data_path, mesh, &["denied by", name]);
    reset(client, to);
    assertions::eventually("a denial in the metrics of both ends", || {
        denials(data_path, mesh)
            .iter()
            .zip(&before)
            .all(|(now, before)| *now == before + 1.0)
    });
    assertions::eventually("a log line with the policy", || {
        log_lines(data_path, mesh, &["denied by", name]) > lines
    });
}

fn log_lines(data_path: DataPath, mesh: &mut Mesh<'_>, words: &[&str]) -> usize {
    let log = mesh.proxy(data_path.server_node()).log();
    log.lines()
        .filter(|line| words.iter().all(|word| line.contains(word)))
        .count()
}

/// The denials in the metrics of the source node and of the destination node.
fn denials(data_path: DataPath, mesh: &mut Mesh<'_>) -> Vec<f64> {
    let ends = [("a", "source"), (data_path.server_node(), "destination")];
    let count = |(node, reporter)| {
        let metrics = mesh.proxy(node).metrics().unwrap();
        let labels = [("reporter", reporter), ("response_flags", "DENY")];
        metrics.sum("istio_tcp_connections_failed_total", &labels)
    };
    ends.map(count).to_vec()
}

fn check_cases(data_path: DataPath, cases: impl FnOnce(&Topology) -> Vec<Case>) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let _servers = topology
        .servers()
        .map(|pod| [HTTP, OTHER].map(|port| pod.serve(Kind::Http, port).unwrap()));
    check(&topology, &mut mesh, &cases(&topology));
}

on_paths!(policies_match_the_clients_identity_namespace_and_address: tunnel, direct);
fn policies_match_the_clients_identity_namespace_and_address(data_path: DataPath) {
    check_cases(data_path, client_cases);
}

on_paths!(policies_match_the_destination_port_and_address: tunnel, direct);
fn policies_match_the_destination_port_and_address(data_path: DataPath) {
    check_cases(data_path, destination_cases);
}

on_paths!(deny_takes_precedence_and_a_policy_applies_only_in_its_scope: tunnel, direct);
fn deny_takes_precedence_and_a_policy_applies_only_in_its_scope(data_path: DataPath) {
    check_cases(data_path, precedence_cases);
}

#[test]
fn a_dry_run_policy_is_logged_and_not_enforced() {
    let world = World::two_nodes().unwrap();
    let trial = Policy {
        extra: [("dryRun".to_owned(), json!(true))].into(),
        ..Policy::namespace("trial", "Deny", json!([[[]]]))
    };
    let mut mesh = Mesh::builder(&world).policy(trial).start().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    for family in Family::BOTH {
        expect_answer(client, server.at(family, HTTP));
        let client = client.address(family).to_string();
        assertions::eventually("a log line about the dry-run policy", || {
            let words = ["dry-run", "default/trial", "matched=true", &client];
            log_lines(DataPath::Tunnel, &mut mesh, &words) == 1
        });
    }
    assert_eq!(denials(DataPath::Tunnel, &mut mesh), [0.0, 0.0]);
}
