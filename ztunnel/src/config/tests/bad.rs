//! Bad settings, each with its message.

use super::{GOOD, complaint};

/// What is appended to the good file (or replaces a part of it: `old => new`), and the message.
const CASES: &[(&str, &str)] = &[
    (
        "nod: x",
        r#"nod: unknown field, did you mean "node"? (line 10)"#,
    ),
    ("sameNode: direct", "x"),
    ("clusterId: [x]", "x"),
    ("mode: both", "x"),
    ("workload: cluster1//v1/Pod/default/a", "x"),
    ("mode: dedicated", "x"),
    ("hbone: { streamWindow: 2MB }", "x"),
    ("hbone: { streamWindow: 1KiB }", "x"),
    ("hbone: { streamWindow: 128MiB }", "x"),
    ("hbone: { maxFrame: 32MiB }", "x"),
    ("hbone: { maxStreamsPerConnection: 0 }", "x"),
    ("hbone: { maxStreamsPerConnection: -1 }", "x"),
    ("hbone: { conectTimeout: 1s }", "x"),
    ("hbone: { connectTimeout: 10 }", "x"),
    ("hbone: { connectTimeout: soon }", "x"),
    ("hbone: { connectTimeout: 0s }", "x"),
    ("keepalive: { retries: 0 }", "x"),
    ("keepalive: { enabled: maybe }", "x"),
    ("threads: 0", "x"),
    ("threads: 1000", "x"),
    ("admin: { address: 0.0.0.0:15000 }", "x"),
    ("admin: { address: localhost }", "x"),
    ("metrics: { address: 127.0.0.1:15000 }", "x"),
    ("log: { format: xml }", "x"),
    ("log: { filter: 'ztunnel=loud' }", "x"),
    ("capture: { mark: 0 }", "x"),
    ("capture: { exemptPorts: [70000] }", "x"),
    ("capture: { exemptCidrs: [10.0.0.0/33] }", "x"),
    ("trustDomain: a/b", "x"),
    ("meshFile: /nowhere/mesh.yaml", "x"),
    ("termination: { deadline: 2years }", "x"),
    ("node: x\nnode: y", "x"),
    (
        "directory: state/ca => directory: state/ca, leafTtl: 1s",
        "x",
    ),
    ("ca: { local: { directory: state/ca } } => ca: {}", "x"),
    (
        "ca: { local: { directory: state/ca } } => ca: { local: {} }",
        "x",
    ),
    ("\nnode: node-a => \n", "x"),
    (
        "{ workload: cluster1//v1/Pod/default/a, => { workload: cluster1//v1/Pod/default/aa,",
        "x",
    ),
    (
        "{ workload: cluster1//v1/Pod/default/a, => { workload: other,",
        "x",
    ),
    ("netns: /run/netns/a } => netns: '' }", "x"),
    (
        "netns: /run/netns/a } => netns: /run/netns/a }\n- { workload: cluster1//v1/Pod/default/a, netns: /b }",
        "x",
    ),
    (
        "netns: /run/netns/a } => netns: /run/netns/a }\n- { workload: cluster1//v1/Pod/default/b, netns: /run/netns/a }",
        "x",
    ),
    ("netns: /run/netns/a } => netms: /run/netns/a }", "x"),
    ("workloadIps: [\"10.0.0.1\", \"fd00::1\"], => ", "x"),
    (
        "node: node-a } => node: node-a, networkMode: HostNetwork }",
        "x",
    ),
    ("protocol: HBONE, node: node-b => protcol: HBONE", "x"),
    ("Pod/default/b, name: b => Pod/default/a, name: b", "x"),
    ("- [", "x"),
];

const VARIABLES: &[(&[(&str, &str)], &str)] = &[
    (&[("PROXY_MODE", "both")], "x"),
    (&[("SECRET_TTL", "forever")], "x"),
    (&[("PACKET_MARK", "red")], "x"),
    (&[("KEEPALIVE_ENABLED", "maybe")], "x"),
    (&[("HTTP2_FRAME_SIZE", "big")], "x"),
    (&[("ZTUNNEL_WORKER_THREADS", "200%")], "x"),
    (&[("ZTUNNEL_WORKER_THREADS", "0")], "x"),
    (&[("PROXY_WORKLOAD_INFO", "default/a")], "x"),
    (&[("LOCAL_XDS_PATH", "/nowhere/mesh.yaml")], "x"),
    (&[("LOCAL_XDS", "workloads: [{ uid: x }]")], "x"),
];

#[test]
fn bad_settings_and_their_messages() {
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
    assert!(
        failures.is_empty(),
        "these messages are others:\n{failures}"
    );
}

#[test]
fn a_fake_authority_is_refused_and_a_real_one_goes_before_it() {
    let without = GOOD.replace("ca: { local: { directory: state/ca } }", "");
    assert_eq!(
        complaint(&without, &[("FAKE_CA", "true")]),
        "environment variable FAKE_CA: certificates that nobody checks are not made here; set \
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
        "workload: not set; in the mode dedicated it or PROXY_WORKLOAD_INFO says for which workload \
         this proxy works"
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
