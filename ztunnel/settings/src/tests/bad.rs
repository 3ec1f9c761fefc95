//! Invalid settings, each with its message.

use super::{GOOD, complaint};

/// What is appended to the good file (or replaces a part of it: `old => new`), and the message.
const CASES: &[(&str, &str)] = &[
    (
        "nod: x",
        "nod: unknown field, did you mean \"node\"? (line 9)",
    ),
    (
        "zebra: direct",
        "zebra: unknown field, expected one of node, clusterId, network, trustDomain, mode, workload, meshFile, pods, nodeAgent, workloads, services, policies, ca, xds, crl, admin, metrics, readiness, capture, dns, newPods, sameNode, acceleration, overrides, hbone, keepalive, socks5, applicationTunnel, threads, log, termination (line 9)",
    ),
    (
        "clusterId: [x]",
        "clusterId: invalid type: sequence, expected a string (line 9)",
    ),
    (
        "mode: both",
        "mode: \"both\" is not one of shared, dedicated (line 9)",
    ),
    (
        "workload: cluster1//v1/Pod/default/a",
        "workload: only possible in mode dedicated",
    ),
    (
        "mode: dedicated",
        "pods: not possible in mode dedicated, which serves one workload on a machine of its own",
    ),
    (
        "nodeAgent: { sockt: x }",
        "nodeAgent.sockt: unknown field, did you mean \"socket\"? (line 9)",
    ),
    (
        "nodeAgent: { socket: \"\" }",
        "nodeAgent.socket: must not be empty",
    ),
    (
        "hbone: { streamWindow: 2MB }",
        "hbone.streamWindow: \"2MB\" is not a size such as 2MiB, 64KiB or a number of bytes (line 9)",
    ),
    (
        "hbone: { streamWindow: 1KiB }",
        "hbone.streamWindow: 1KiB is out of range, 65535B to 2147483647B is possible",
    ),
    (
        "hbone: { streamWindow: 256MiB }",
        "hbone.connectionWindow: 128MiB is less than hbone.streamWindow, 256MiB",
    ),
    (
        "hbone: { maxFrame: 32MiB }",
        "hbone.maxFrame: 32MiB is out of range, 16KiB to 16777215B is possible",
    ),
    (
        "hbone: { maxStreamsPerConnection: 0 }",
        "hbone.maxStreamsPerConnection: 0 is out of range, 1 to 65535 is possible",
    ),
    (
        "hbone: { maxStreamsPerConnection: -1 }",
        "hbone.maxStreamsPerConnection: invalid value: integer `-1`, expected u32 (line 9)",
    ),
    (
        "hbone: { conectTimeout: 1s }",
        "hbone.conectTimeout: unknown field, did you mean \"connectTimeout\"? (line 9)",
    ),
    (
        "hbone: { connectTimeout: 10 }",
        "hbone.connectTimeout: invalid type: integer `10`, expected a duration with its unit, such as 10s, 5m or 24h (line 9)",
    ),
    (
        "hbone: { connectTimeout: soon }",
        "hbone.connectTimeout: \"soon\" is not a duration such as 10s, 5m or 24h (line 9)",
    ),
    (
        "hbone: { connectTimeout: 0s }",
        "hbone.connectTimeout: 0s is out of range, 10ms to 365days is possible",
    ),
    (
        "dns: { timeout: 0s }",
        "dns.timeout: 0s is out of range, 10ms to 365days is possible",
    ),
    (
        "keepalive: { retries: 0 }",
        "keepalive.retries: 0 is out of range, 1 to 127 is possible",
    ),
    (
        "keepalive: { enabled: maybe }",
        "keepalive.enabled: invalid type: string \"maybe\", expected a boolean (line 9)",
    ),
    (
        "threads: 0",
        "threads: 0 is out of range, 1 to 256 is possible",
    ),
    (
        "threads: 1000",
        "threads: 1000 is out of range, 1 to 256 is possible",
    ),
    (
        "admin: { address: 0.0.0.0:15000 }",
        "admin.address: 0.0.0.0:15000 is not a loopback address; every client of the admin interface can stop the proxy",
    ),
    (
        "admin: { address: localhost }",
        "admin.address: \"localhost\" is not an address and a port, such as 127.0.0.1:15000 or [::]:15020 (line 9)",
    ),
    (
        "metrics: { address: 127.0.0.1:15000 }",
        "metrics.address: \"127.0.0.1:15000\" is already listed at admin.address",
    ),
    (
        "log: { format: xml }",
        "log.format: \"xml\" is not one of text, json (line 9)",
    ),
    (
        "log: { filter: 'ztunnel=loud' }",
        "log.filter: \"ztunnel=loud\" is not a log filter: \"loud\" is not a level: expected off, error, warn, info, debug or trace",
    ),
    (
        "capture: { mark: 0 }",
        "capture.mark: 0 is out of range, 1 to 4294967295 is possible",
    ),
    (
        "capture: { exemptPorts: [70000] }",
        "capture.exemptPorts[0]: invalid value: integer `70000`, expected u16 (line 9)",
    ),
    (
        "capture: { exemptCidrs: [10.0.0.0/33] }",
        "capture.exemptCidrs[0]: \"10.0.0.0/33\" is not an address range such as 10.0.0.0/8 or an address (line 9)",
    ),
    (
        "capture: { exemptSources: [kubelet] }",
        "capture.exemptSources[0]: \"kubelet\" is not an address range such as 10.0.0.0/8 or an address (line 9)",
    ),
    (
        "capture: { verdicts: 15 }",
        "capture.verdicts: 15 is out of range, 16 to 1048576 is possible",
    ),
    (
        "capture: { verdicts: 1048577 }",
        "capture.verdicts: 1048577 is out of range, 16 to 1048576 is possible",
    ),
    (
        "trustDomain: a/b",
        "trustDomain: \"a/b\" is not a trust domain",
    ),
    (
        "meshFile: /nowhere/mesh.yaml",
        "/nowhere/mesh.yaml: No such file or directory (os error 2)",
    ),
    (
        "termination: { deadline: 2years }",
        "termination.deadline: 2years is out of range, 0s to 365days is possible",
    ),
    (
        "newPods: { workloadWait: 61s }",
        "newPods.workloadWait: 1m 1s is out of range, 0s to 1m is possible",
    ),
    ("node: x\nnode: y", "duplicate entry with key \"node\""),
    (
        "directory: state/ca => directory: state/ca, leafTtl: 1s",
        "ca.local.leafTtl: 1s is out of range, 2s to 365days is possible",
    ),
    (
        "ca: { local: { directory: state/ca } } => ca: {}",
        "ca.local.directory: not set; set it to the directory for the keys of the mesh's certificate authority, or set ca.address to use that of the control plane",
    ),
    (
        "ca: { local: { directory: state/ca } } => ca: { local: {} }",
        "ca.local: missing field `directory` (line 3)",
    ),
    (
        "\nnode: node-a => \n",
        "node: not set; set this key, NODE_NAME or --node to the name of the node that this proxy runs on",
    ),
    (
        "{ workload: cluster1//v1/Pod/default/a, => { workload: cluster1//v1/Pod/default/aa,",
        "pods[0].workload: \"cluster1//v1/Pod/default/aa\" is not the uid of a workload, did you mean \"cluster1//v1/Pod/default/a\"?",
    ),
    (
        "{ workload: cluster1//v1/Pod/default/a, => { workload: other,",
        "pods[0].workload: \"other\" is not the uid of a workload",
    ),
    (
        "netns: /run/netns/a } => netns: '' }",
        "pods[0].netns: must not be empty",
    ),
    (
        "netns: /run/netns/a } => netns: /run/netns/a }\n- { workload: cluster1//v1/Pod/default/a, netns: /b }",
        "pods[1].workload: \"cluster1//v1/Pod/default/a\" is already listed at pods[0].workload",
    ),
    (
        "netns: /run/netns/a } => netns: /run/netns/a }\n- { workload: cluster1//v1/Pod/default/b, netns: /run/netns/a }",
        "pods[1].netns: \"/run/netns/a\" is already listed at pods[0].netns",
    ),
    (
        "netns: /run/netns/a } => netms: /run/netns/a }",
        "pods[0].netms: unknown field, did you mean \"netns\"? (line 5)",
    ),
    (
        "workloadIps: [\"10.0.0.1\", \"fd00::1\"], => ",
        "pods[0].workload: cluster1//v1/Pod/default/a cannot be enrolled: it has no workloadIps",
    ),
    (
        "node: node-a } => node: node-a, networkMode: HostNetwork }",
        "pods[0].workload: cluster1//v1/Pod/default/a cannot be enrolled: it uses its node's network",
    ),
    (
        "protocol: HBONE, node: node-b => protcol: HBONE",
        "workloads[1].protcol: unknown field, did you mean \"protocol\"? (line 8)",
    ),
    (
        "Pod/default/b, name: b => Pod/default/a, name: b",
        "workloads[1].uid: \"cluster1//v1/Pod/default/a\" is already the uid of the workload at workloads[0]",
    ),
    ("- [", "did not find expected node content (line 10)"),
];

const VARIABLES: &[(&[(&str, &str)], &str)] = &[
    (
        &[("ZTUNNEL_SAME_NODE", "no")],
        "environment variable ZTUNNEL_SAME_NODE: \"no\" is not one of direct, tunnel",
    ),
    (
        &[("ZTUNNEL_ACCELERATION", "true")],
        "environment variable ZTUNNEL_ACCELERATION: \"true\" is not one of auto, on, off",
    ),
    (
        &[("ZTUNNEL_CAPTURE_VERDICTS", "1")],
        "capture.verdicts: 1 is out of range, 16 to 1048576 is possible",
    ),
    (
        &[("PROXY_MODE", "both")],
        "environment variable PROXY_MODE: \"both\" is not one of shared, dedicated",
    ),
    (
        &[("INPOD_ENABLED", "perhaps")],
        "environment variable INPOD_ENABLED: \"perhaps\" is neither true nor false",
    ),
    (
        &[("SECRET_TTL", "forever")],
        "environment variable SECRET_TTL: \"forever\" is not a duration such as 10s, 5m or 24h",
    ),
    (
        &[("PACKET_MARK", "red")],
        "environment variable PACKET_MARK: \"red\" is not a number, 0 to 4294967295",
    ),
    (
        &[("KEEPALIVE_ENABLED", "maybe")],
        "environment variable KEEPALIVE_ENABLED: \"maybe\" is neither true nor false",
    ),
    (
        &[("HTTP2_FRAME_SIZE", "big")],
        "environment variable HTTP2_FRAME_SIZE: \"big\" is not a size such as 2MiB, 64KiB or a number of bytes",
    ),
    (
        &[("ZTUNNEL_WORKER_THREADS", "200%")],
        "environment variable ZTUNNEL_WORKER_THREADS: \"200%\" is neither a number of threads nor a percentage",
    ),
    (
        &[("ZTUNNEL_WORKER_THREADS", "33.é%")],
        "environment variable ZTUNNEL_WORKER_THREADS: \"33.é%\" is neither a number of threads nor a percentage",
    ),
    (
        &[("ZTUNNEL_WORKER_THREADS", "0")],
        "environment variable ZTUNNEL_WORKER_THREADS: \"0\" is neither a number of threads nor a percentage",
    ),
    (
        &[("PROXY_WORKLOAD_INFO", "default/a")],
        "environment variable PROXY_WORKLOAD_INFO: \"default/a\" is not namespace/name/service account",
    ),
    (
        &[("LOCAL_XDS_PATH", "/nowhere/mesh.yaml")],
        "/nowhere/mesh.yaml: No such file or directory (os error 2)",
    ),
    (
        &[("LOCAL_XDS", "workloads: [{ uid: x }]")],
        "LOCAL_XDS: workloads[0]: missing field `name` (line 1)",
    ),
];

#[test]
fn invalid_settings_and_their_messages() {
    let mut failures = String::new();
    for (change, message) in CASES {
        let text = match change.split_once(" => ") {
            Some((old, new)) => {
                assert!(GOOD.contains(old), "{old}");
                GOOD.replacen(old, new, 1)
            }
            None => format!("{GOOD}{change}\n"),
        };
        let found = complaint(&text, &[]);
        if found != *message {
            failures.push_str(&format!("    ({change:?}, {found:?}),\n"));
        }
    }
    for (variables, message) in VARIABLES {
        let found = complaint(GOOD, variables);
        if found != *message {
            failures.push_str(&format!("    (&{variables:?}, {found:?}),\n"));
        }
    }
    assert!(failures.is_empty(), "these messages differ:\n{failures}");
}

#[test]
fn a_fake_authority_is_refused_unless_a_local_one_is_configured() {
    let without = GOOD.replace("ca: { local: { directory: state/ca } }", "");
    assert_eq!(
        complaint(&without, &[("FAKE_CA", "true")]),
        "environment variable FAKE_CA: this proxy does not issue unverified certificates; set \
         ca.local.directory for a certificate authority inside the proxy"
    );
    assert!(super::load(GOOD, &[("FAKE_CA", "true")]).is_ok());
}

#[test]
fn a_dedicated_proxy_needs_exactly_one_workload() {
    let text = GOOD.replace("pods:\n- {", "#");
    let dedicated = |info: &str| {
        complaint(
            &text,
            &[("PROXY_MODE", "dedicated"), ("PROXY_WORKLOAD_INFO", info)],
        )
    };
    assert_eq!(
        dedicated("default/a/b"),
        "environment variable PROXY_WORKLOAD_INFO: the mesh has no workload a of namespace default \
         with service account b"
    );
    let twins = format!("{text}- {{ uid: twin, name: a, serviceAccount: a }}\n");
    let info = [
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "default/a/a"),
    ];
    assert_eq!(
        complaint(&twins, &info),
        "environment variable PROXY_WORKLOAD_INFO: the mesh has more than one workload a of \
         namespace default with service account a: cluster1//v1/Pod/default/a and twin; name one \
         with the key workload"
    );
    assert_eq!(
        complaint(&format!("{text}\nmode: dedicated\n"), &[]),
        "workload: not set; mode dedicated needs the workload that this proxy serves: set this key \
         or PROXY_WORKLOAD_INFO"
    );
    assert_eq!(
        complaint(
            &format!("{text}\nmode: dedicated\nworkload: cluster1//v1/Pod/default/c\n"),
            &[]
        ),
        "workload: \"cluster1//v1/Pod/default/c\" is not the uid of a workload, did you mean \
         \"cluster1//v1/Pod/default/a\"?"
    );
}
