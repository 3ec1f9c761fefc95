//! The precedence of the layers, and the result of a whole file.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::super::{Authority, Bytes, LogFormat, Mode, Overrides};
use super::{GOOD, load, load_with};

#[test]
fn a_small_file_and_the_defaults() {
    let settings = load(GOOD, &[]).unwrap();
    assert_eq!(&*settings.node, "node-a");
    assert_eq!(&*settings.cluster_id, "Kubernetes");
    assert_eq!(settings.mode, Mode::Shared);
    assert_eq!(settings.pods.len(), 1);
    assert_eq!(settings.admin.to_string(), "127.0.0.1:15000");
    assert_eq!(settings.hbone.stream_window, Bytes(1 << 20));
    assert!(matches!(settings.ca, Authority::Local(_)));
    assert_eq!(settings.ca.leaf_ttl(), Duration::from_secs(86_400));
    assert_eq!(settings.xds, None);
    assert!(settings.threads.get() <= 2);
    assert_eq!(settings.warnings, Vec::<String>::new());
    let mesh = settings.mesh();
    let address: IpAddr = "10.0.0.2".parse().unwrap();
    assert_eq!(&*mesh.workload_by_address("", address).unwrap().name, "b");
}

#[test]
fn flags_take_precedence_over_the_environment_and_that_over_the_file() {
    let text = format!(
        "{GOOD}\nclusterId: of-file\nnetwork: of-file\ntrustDomain: of.file\nlog: {{ filter: warn }}\n\
         hbone: {{ maxStreamsPerConnection: 7, idleRelease: 1m }}\nthreads: 3\n"
    );
    let variables = [
        ("NODE_NAME", "of-environment"),
        ("CLUSTER_ID", "of-environment"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "9"),
        ("POOL_UNUSED_RELEASE_TIMEOUT", "90"),
        ("HTTP2_FRAME_SIZE", "65536"),
        ("ZTUNNEL_CPU_LIMIT", "8"),
        ("ZTUNNEL_WORKER_THREADS", "50%"),
        ("LOG_FORMAT", "json"),
        ("RUST_LOG", "debug"),
        ("PACKET_MARK", "42"),
        ("UNSTABLE_ENABLE_SOCKS5", "true"),
        ("SECRET_TTL", "1h"),
        ("KEEPALIVE_ENABLED", "false"),
        ("XDS_ADDRESS", "istiod:15012"),
    ];
    let flags = Overrides {
        node: Some("of-flag".to_owned()),
        ..Overrides::default()
    };
    let settings = load_with(&text, &variables, &flags).unwrap();
    assert_eq!(&*settings.node, "of-flag");
    assert_eq!(&*settings.cluster_id, "of-environment");
    assert_eq!(&*settings.network, "of-file");
    assert_eq!(&*settings.trust_domain, "of.file");
    assert_eq!(settings.hbone.max_streams_per_connection, 9);
    assert_eq!(settings.hbone.idle_release, Duration::from_secs(90));
    assert_eq!(settings.hbone.max_frame, Bytes(65536));
    assert_eq!(settings.threads, NonZeroUsize::new(4).unwrap());
    assert_eq!(settings.log.filter, "debug");
    assert_eq!(settings.log.format, LogFormat::Json);
    assert_eq!(settings.capture.mark, 42);
    assert_eq!(settings.ca.leaf_ttl(), Duration::from_secs(3600));
    assert_eq!(settings.keepalive, None);
    assert!(settings.socks5);
}

#[test]
fn proxy_headers_are_delivered_on_loopback_by_default() {
    let on_loopback = |file: &str, variables: &[(&str, &str)]| {
        let file = format!("{GOOD}\n{file}");
        load_with(&file, variables, &Overrides::default())
            .unwrap()
            .localhost_app_tunnel
    };
    let no = "applicationTunnel: { localhost: false }";
    assert!(on_loopback("", &[]));
    assert!(!on_loopback(no, &[]));
    assert!(!on_loopback("", &[("LOCALHOST_APP_TUNNEL", "false")]));
    assert!(on_loopback(no, &[("LOCALHOST_APP_TUNNEL", "true")]));
}

#[test]
fn dns_is_captured_by_default() {
    let dns = |file: &str, variables: &[(&str, &str)]| {
        let file = format!("{GOOD}\n{file}");
        load(&file, variables).unwrap().dns.map(|dns| dns.timeout)
    };
    let capture = |value| [("ISTIO_META_DNS_CAPTURE", value)];
    let default = Some(Duration::from_secs(5));
    assert_eq!(dns("", &[]), default);
    assert_eq!(
        dns("dns: { timeout: 2s }", &[]),
        Some(Duration::from_secs(2))
    );
    assert_eq!(dns("dns: { enabled: false }", &[]), None);
    assert_eq!(dns("dns: { enabled: false }", &capture("True")), default);
    assert_eq!(dns("", &capture("false")), None);
    assert_eq!(dns("", &capture("yes")), None);
}

#[test]
fn workloads_inherit_the_trust_domain_of_the_mesh() {
    let settings = load(&format!("{GOOD}\ntrustDomain: example.org\n"), &[]).unwrap();
    let workload = settings.local_mesh.workloads.first().unwrap();
    assert_eq!(
        workload.identity.as_str(),
        "spiffe://example.org/ns/default/sa/a"
    );
}

#[test]
fn the_deadline_leaves_a_tenth_of_the_grace_period() {
    let deadline = |variables: &[(&str, &str)]| load(GOOD, variables).unwrap().termination_deadline;
    assert_eq!(deadline(&[]), Duration::from_secs(5));
    assert_eq!(
        deadline(&[("TERMINATION_GRACE_PERIOD_SECONDS", "30")]),
        Duration::from_secs(27)
    );
    let both = [
        ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
        ("CONNECTION_TERMINATION_DEADLINE", "3s"),
    ];
    assert_eq!(deadline(&both), Duration::from_secs(3));
    // A second is always left for resetting open connections.
    let long = [
        ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
        ("CONNECTION_TERMINATION_DEADLINE", "5m"),
    ];
    assert_eq!(deadline(&long), Duration::from_secs(29));
    let grace = |seconds| deadline(&[("TERMINATION_GRACE_PERIOD_SECONDS", seconds)]);
    assert_eq!(grace("5"), Duration::from_secs(4));
    assert_eq!(grace("0"), Duration::ZERO);
    let endless = [("TERMINATION_GRACE_PERIOD_SECONDS", "18446744073709551615")];
    assert!(load(GOOD, &endless).is_err());
}

#[test]
fn the_mesh_comes_from_every_source_together() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mesh.yaml");
    std::fs::write(
        &path,
        "workloads:\n- { uid: c, name: c, workloadIps: [10.0.0.3] }\n",
    )
    .unwrap();
    let text = format!("{GOOD}\nmeshFile: {}\n", path.display());
    let inline = "workloads: [{ uid: d, name: d, workloadIps: [10.0.0.4] }]";
    let settings = load(&text, &[("LOCAL_XDS", inline)]).unwrap();
    assert_eq!(settings.mesh_file.as_deref(), Some(&*path));
    assert_eq!(settings.mesh().workloads().len(), 4);

    std::fs::write(
        &path,
        "workloads:\n- { uid: c, name: c, workloadIps: [10.0.0.1] }\n",
    )
    .unwrap();
    assert_eq!(
        load(&text, &[]).unwrap_err().to_string(),
        format!(
            "{}: workloads[0].workloadIps[0]: 10.0.0.1 in network \"\" already belongs to workload \
             cluster1//v1/Pod/default/a (workloads[0].workloadIps[0])",
            path.display()
        )
    );
    std::fs::write(&path, "workload: []\n").unwrap();
    assert_eq!(
        load(&text, &[]).unwrap_err().to_string(),
        format!(
            "{}: workload: unknown field, did you mean \"workloads\"? (line 1)",
            path.display()
        )
    );
}

#[test]
fn dedicated_for_a_uid_or_for_a_described_workload() {
    let text = GOOD.replace("pods:\n- {", "#");
    let a = "cluster1//v1/Pod/default/a";
    let info = [
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "default/a/a"),
    ];
    for settings in [
        load(&format!("{text}\nmode: dedicated\nworkload: {a}\n"), &[]).unwrap(),
        load(&text, &info).unwrap(),
        load_with(
            &text,
            &[],
            &Overrides {
                workload: Some(a.to_owned()),
                ..Overrides::default()
            },
        )
        .unwrap(),
        // Without any other node name, the node is that of the workload.
        load(&text.replace("\nnode: node-a", "\n"), &info).unwrap(),
    ] {
        assert_eq!(&*settings.node, "node-a");
        let Mode::Dedicated { workload } = settings.mode else {
            panic!("not dedicated")
        };
        assert_eq!(&*workload.0, a);
    }
}

#[test]
fn dedicated_for_a_workload_that_only_the_control_plane_knows() {
    let text = GOOD.replace("pods:\n- {", "#");
    let info = [
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "elsewhere/x/y"),
    ];
    assert!(load(&text, &info).is_err(), "an unknown workload");
    let asked = [&info[..], &[("XDS_ADDRESS", "istiod:15012")]].concat();
    let Mode::Dedicated { workload } = load(&text, &asked).unwrap().mode else {
        panic!("not dedicated")
    };
    assert!(workload.0.ends_with("//Pod/elsewhere/x"), "{workload}");
}

#[test]
fn variables_of_istios_ztunnel_without_effect_are_warned_about() {
    let settings = load(GOOD, &[("PROXY_CONFIG", "{}"), ("IPV6_ENABLED", "")]).unwrap();
    assert_eq!(
        settings.warnings,
        ["environment variable PROXY_CONFIG: has no effect in this proxy"]
    );
}

#[test]
fn only_node_and_authority_are_required() {
    let variables = [("NODE_NAME".to_owned(), "n".to_owned())];
    let environment = super::Environment::read(variables).unwrap();
    let flags = Overrides {
        ca_directory: Some("state/ca".into()),
        ..Overrides::default()
    };
    let settings = super::super::load_from(None, &environment, &flags).unwrap();
    assert_eq!(&*settings.node, "n");
    assert!(super::super::load_from(None, &environment, &Overrides::default()).is_err());
}

#[test]
fn a_pod_of_another_node_is_warned_about() {
    let text = GOOD.replace("\nnode: node-a", "\nnode: node-z");
    assert_eq!(
        load(&text, &[]).unwrap().warnings,
        [
            "pods[0].workload: cluster1//v1/Pod/default/a runs on node \"node-a\" according to the \
             mesh, but this proxy runs on \"node-z\""
        ]
    );
}

#[test]
fn the_directory_of_the_pins_needs_no_other_setting() {
    let default = super::super::bpf_directory(None).unwrap();
    assert_eq!(default, std::path::Path::new("/sys/fs/bpf/ztunnel"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("settings.yaml");
    std::fs::write(&path, "capture: { bpfDirectory: /sys/fs/bpf/other }\n").unwrap();
    let named = super::super::bpf_directory(Some(&path)).unwrap();
    assert_eq!(named, std::path::Path::new("/sys/fs/bpf/other"));
    std::fs::write(&path, "captur: {}\n").unwrap();
    assert!(super::super::bpf_directory(Some(&path)).is_err());
}

#[test]
fn a_missing_file_is_named() {
    let environment = super::Environment::default();
    let path = std::path::Path::new("/nowhere/settings.yaml");
    let error =
        super::super::load_from(Some(path), &environment, &Overrides::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/nowhere/settings.yaml: No such file or directory (os error 2)"
    );
    assert_eq!(error.reason(), "read");
}
