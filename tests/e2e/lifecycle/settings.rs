//! Invalid settings are refused with a message that contains the key, and a running proxy keeps the
//! last valid settings.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::process::Process;
use ztunnel_tests::proxy::{Mesh, Policy, ztunnel};
use ztunnel_tests::traffic::Kind;

use crate::assertions::{self, HTTP, LIMIT, expect_answer, reset};

const VALID: &str = "\
node: n
ca: { local: { directory: state/ca } }
pods:
- { workload: u/a, netns: /run/netns/none }
workloads:
- { uid: u/a, name: a, workloadIps: [10.0.0.1], protocol: HBONE, node: n }
- { uid: u/b, name: b, workloadIps: [10.0.0.2], protocol: TCP, node: m }
services:
- { name: s, namespace: default, hostname: s.default, vips: [/10.1.0.1], ports: { 80: 8080 } }
policies:
- { name: p, namespace: default, scope: Namespace, action: Allow, rules: [[[{ destinationPorts: [80] }]]] }
";

/// A text in the valid file, its replacement, and the expected message.
const INVALID: &[(&str, &str, &str)] = &[
    (
        "node: n\n",
        "nodee: n\n",
        "nodee: unknown field, did you mean \"node\"? (line 1)",
    ),
    ("node: n\n", "", "node: not set"),
    (
        "node: n\n",
        "node: [n]\n",
        "node: invalid type: sequence, expected a string (line 1)",
    ),
    (
        "node: n\n",
        "node: n\nnode: m\n",
        "duplicate entry with key \"node\"",
    ),
    (
        "node: n\n",
        "node: n\nsameNode: inside\n",
        "sameNode: \"inside\" is not one of direct, tunnel",
    ),
    (
        "node: n\n",
        "node: n\nacceleration: yes\n",
        "acceleration: ",
    ),
    (
        "node: n\n",
        "node: n\ncapture: { verdicts: 0 }\n",
        "capture.verdicts: 0 is out of range",
    ),
    (
        "node: n\n",
        "node: n\noverrides: [{ workload: u/a }, { workload: u/a, sameNode: tunnel }]\n",
        "overrides[1].workload",
    ),
    (
        "node: n\n",
        "node: n\nmode: both\n",
        "mode: \"both\" is not one of shared, dedicated",
    ),
    (
        "node: n\n",
        "node: n\nthreads: 0\n",
        "threads: 0 is out of range, 1 to 256",
    ),
    (
        "node: n\n",
        "node: n\ntrustDomain: a/b\n",
        "trustDomain: \"a/b\" is not a trust domain",
    ),
    (
        "node: n\n",
        "node: n\nadmin: { address: 0.0.0.0:15000 }\n",
        "admin.address: 0.0.0.0:15000 is not a loopback address",
    ),
    (
        "node: n\n",
        "node: n\nmetrics: { address: here }\n",
        "metrics.address: \"here\" is not an address and a port",
    ),
    (
        "node: n\n",
        "node: n\nlog: { format: xml }\n",
        "log.format: \"xml\" is not one of text, json",
    ),
    (
        "node: n\n",
        "node: n\nlog: { filter: 'a=loud' }\n",
        "log.filter: \"a=loud\" is not a log filter",
    ),
    (
        "node: n\n",
        "node: n\nhbone: { streamWindow: 2MB }\n",
        "hbone.streamWindow: \"2MB\" is not a size such as 2MiB",
    ),
    (
        "node: n\n",
        "node: n\nhbone: { handshakeTimeout: 10 }\n",
        "hbone.handshakeTimeout: invalid type: integer `10`, expected a duration",
    ),
    (
        "node: n\n",
        "node: n\ncapture: { exemptCidrs: [10.0.0.0/33] }\n",
        "capture.exemptCidrs[0]: \"10.0.0.0/33\" is not an address range",
    ),
    (
        "node: n\n",
        "node: n\ncapture: { exemptPorts: [70000] }\n",
        "capture.exemptPorts[0]: invalid value",
    ),
    (
        "node: n\n",
        "node: n\nmeshFile: /nowhere/mesh.yaml\n",
        "/nowhere/mesh.yaml: No such file",
    ),
    (
        "node: n\n",
        "node: n\ntermination: { deadline: soon }\n",
        "termination.deadline: \"soon\" is not a duration",
    ),
    (
        "node: n\n",
        "node: n\n\t- [",
        "found a tab character that violates indentation (line 2)",
    ),
    (
        "{ local: { directory: state/ca } }",
        "{}",
        "ca.local.directory: not set",
    ),
    (
        "directory: state/ca",
        "directory: state/ca, leafTtl: 1s",
        "ca.local.leafTtl: 1s is out of range",
    ),
    (
        "workload: u/a,",
        "workload: u/aa,",
        "pods[0].workload: \"u/aa\" is not the uid of a workload, did you mean \"u/a\"?",
    ),
    (
        "netns: /run/netns/none",
        "netns: ''",
        "pods[0].netns: must not be empty",
    ),
    (
        "netns: /run/netns/none }",
        "netns: /x }\n- { workload: u/a, netns: /y }",
        "pods[1].workload: \"u/a\" is already listed at pods[0].workload",
    ),
    (
        "protocol: TCP",
        "protocol: UDP",
        "workloads[1].protocol: \"UDP\"",
    ),
    (
        "protocol: TCP",
        "protcol: TCP",
        "workloads[1].protcol: unknown field, did you mean \"protocol\"?",
    ),
    (
        "uid: u/b",
        "uid: u/a",
        "workloads[1].uid: \"u/a\" is already the uid of the workload at workloads[0]",
    ),
    (
        "[10.0.0.2]",
        "[10.0.0.1]",
        "10.0.0.1 in network \"\" already belongs to",
    ),
    ("[10.0.0.2]", "[10.0.0]", "workloads[1].workloadIps[0]"),
    ("[/10.1.0.1]", "[here]", "services[0].vips[0]"),
    ("{ 80: 8080 }", "{ 80: 80800 }", "services[0].ports"),
    (
        "scope: Namespace",
        "scope: Everywhere",
        "policies[0].scope: \"Everywhere\" is not one of Global, Namespace, WorkloadSelector",
    ),
    (
        "action: Allow",
        "action: Perhaps",
        "policies[0].action: \"Perhaps\" is not one of Allow, Deny",
    ),
    (
        "[[[{ destinationPorts: [80] }]]]",
        "[[[{ destinationPort: [80] }]]]",
        "policies[0].rules[0][0][0].destinationPort: unknown field",
    ),
    (
        "name: p,",
        "name: a/b,",
        "policies[0].name: \"a/b\" is not a name of a policy",
    ),
];

fn with_replacement(old: &str, new: &str) -> String {
    assert!(VALID.contains(old), "{old}");
    VALID.replacen(old, new, 1)
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn check(directory: &Path, text: &str) -> Output {
    let file = directory.join("checked.yaml");
    fs::write(&file, text).unwrap();
    let mut command = Command::new(ztunnel().unwrap());
    command
        .args(["config", "check", "--config"])
        .arg(file)
        .current_dir(directory)
        .output()
        .unwrap()
}

#[test]
fn config_check_names_every_invalid_setting() {
    let directory = tempfile::tempdir().unwrap();
    let valid = check(directory.path(), VALID);
    assert!(valid.status.success(), "{}", text_of(&valid));
    let mut wrong = String::new();
    for (old, new, message) in INVALID {
        let output = check(directory.path(), &with_replacement(old, new));
        let text = text_of(&output);
        if output.status.code() != Some(1) || !text.contains(message) {
            wrong.push_str(&format!(
                "{new:?}: {}, expected {message:?}\n    {text}\n",
                output.status
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Starts a proxy that must not start. Returns its exit code and its output.
fn start(host: &Host, directory: &Path, text: &str) -> (Option<i32>, String) {
    let (file, log) = (directory.join("settings.yaml"), directory.join("log"));
    fs::write(&file, text).unwrap();
    let output = File::create(&log).unwrap();
    let mut command = Command::new(ztunnel().unwrap());
    command
        .args(["proxy", "--config"])
        .arg(file)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output);
    let mut process = Process::start(host, &mut command).unwrap();
    let status = process.wait(LIMIT).unwrap();
    (status.code(), fs::read_to_string(log).unwrap())
}

/// A directory for the files of a proxy.
fn directory(world: &World) -> PathBuf {
    let path = world.directory().join("invalid");
    fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn a_proxy_does_not_start_with_invalid_settings() {
    let world = World::builder().node("a", 1).build().unwrap();
    let (node, directory) = (&world.node("a").host, directory(&world));
    for (old, new, message) in INVALID.iter().step_by(4) {
        let (code, output) = start(node, &directory, &with_replacement(old, new));
        assert_eq!(code, Some(1), "{new:?}: {output}");
        assert!(output.contains(message), "{new:?}: {output}");
        assert!(!output.contains("panicked"), "{output}");
    }
    let (code, output) = start(node, &directory, "\0\u{1}");
    assert_eq!(code, Some(1), "{output}");
    fs::create_dir_all(directory.join("state/ca")).unwrap();
    fs::write(directory.join("state/ca/root-cert.pem"), "no certificate").unwrap();
    let pinned = format!(
        "{VALID}capture: {{ bpfDirectory: {} }}\n",
        directory.join("bpf").display()
    );
    let (code, output) = start(node, &directory, &pinned);
    assert_eq!(code, Some(1), "{output}");
    assert!(
        output.contains("state/ca"),
        "the error must contain the damaged directory: {output}"
    );
}

/// An invalid text to append to a valid file, and the expected message in the log.
const LIVE: &[(&str, &str)] = &[
    ("threads: 0\n", "threads: 0 is out of range"),
    ("nodde: x\n", "nodde: unknown field"),
    ("\t[", "settings.yaml"),
    (
        "hbone: { maxFrame: much }\n",
        "hbone.maxFrame: \"much\" is not a size",
    ),
    ("capture: 7\n", "capture"),
];

#[test]
fn a_running_proxy_keeps_the_last_valid_settings() {
    let world = World::two_nodes().unwrap();
    let rules = serde_json::json!([[[{ "destinationPorts": [9000] }]]]);
    let policy = Policy::namespace("no-9000", "Deny", rules);
    let mut mesh = Mesh::builder(&world).policy(policy).start().unwrap();
    let (client, server) = (world.pod("a", 0), world.pod("b", 0));
    let _servers = [HTTP, 9000].map(|port| server.serve(Kind::Http, port).unwrap());
    let good = mesh.proxy("b").settings.to_yaml().unwrap();
    for (added, named) in LIVE {
        let proxy = mesh.proxy("b");
        proxy
            .write_settings_text(&format!("{good}{added}"))
            .unwrap();
        let line = proxy.wait_for_log(named, LIMIT).unwrap();
        assert!(line.contains("the last good ones stay in force"), "{line}");
        for family in Family::BOTH {
            expect_answer(client, server.at(family, HTTP));
            reset(client, server.at(family, 9000));
        }
    }
    // An empty file, and a missing one.
    let refusals = |mesh: &mut Mesh<'_>| mesh.proxy("b").log().matches("stay in force").count();
    let before = refusals(&mut mesh);
    mesh.proxy("b").write_settings_text("").unwrap();
    assertions::eventually("a line about the empty file", || {
        refusals(&mut mesh) > before
    });
    let before = refusals(&mut mesh);
    fs::remove_file(mesh.proxy("b").settings_path()).unwrap();
    assertions::eventually("a line about the missing file", || {
        refusals(&mut mesh) > before
    });
    expect_answer(client, server.at(Family::V4, HTTP));
    reset(client, server.at(Family::V4, 9000));

    // A valid file is applied again.
    mesh.change(|settings| settings.policies.clear()).unwrap();
    assertions::eventually("the good settings", || {
        assertions::listed(mesh.proxy("b"), "policies").is_empty()
    });
    for family in Family::BOTH {
        expect_answer(client, server.at(family, 9000));
    }
    assertions::assert_all_running(&mut mesh);
}
