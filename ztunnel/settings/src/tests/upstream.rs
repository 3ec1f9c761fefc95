//! The control plane's services, from the file, the environment and the cluster.

use super::super::{Authority, Upstream, Xds};
use super::{GOOD, complaint, load};

fn remote(text: &str, variables: &[(&str, &str)]) -> Upstream {
    match load(text, variables).unwrap().ca {
        Authority::Remote(remote) => remote.upstream,
        local @ Authority::Local(_) => panic!("{local:?}"),
    }
}

fn xds(text: &str, variables: &[(&str, &str)]) -> Option<Xds> {
    load(text, variables).unwrap().xds
}

const LOCAL_CA: &str = "ca: { local: { directory: state/ca } }";
const IN_A_POD: (&str, &str) = ("KUBERNETES_SERVICE_HOST", "10.0.0.1");

#[test]
fn everything_about_the_authority_can_be_set_in_the_file() {
    let text = GOOD.replace(
        LOCAL_CA,
        "ca: { address: \"https://ca:1\", rootCertificate: r.pem, hostname: istiod, token: t, leafTtl: 2h, headers: { x-a: b } }",
    );
    let upstream = remote(&text, &[]);
    assert_eq!(upstream.address, "https://ca:1");
    assert_eq!(upstream.root.as_deref(), Some("r.pem".as_ref()));
    assert_eq!(upstream.hostname.as_deref(), Some("istiod"));
    assert_eq!(upstream.token.as_deref(), Some("t".as_ref()));
    assert_eq!(upstream.headers.0, [("x-a".to_owned(), "b".to_owned())]);
    assert_eq!(load(&text, &[]).unwrap().ca.leaf_ttl().as_secs(), 7200);
}

#[test]
fn the_environment_takes_precedence_over_the_file() {
    let text = GOOD.replace(LOCAL_CA, "ca: { address: \"https://ca:1\", hostname: a }")
        + "xds: { address: \"https://xds:1\", onDemand: true }\n";
    let variables = [
        ("CA_ADDRESS", "ca.example:2"),
        ("ALT_CA_HOSTNAME", "b"),
        ("CA_ROOT_CA", "SYSTEM"),
        ("CA_HEADER_x-ca", "1"),
        ("XDS_ADDRESS", "xds.example:2"),
        ("ALT_XDS_HOSTNAME", "c"),
        ("XDS_ROOT_CA", "x.pem"),
        ("XDS_HEADER_x-xds", "2"),
        ("XDS_ON_DEMAND", "false"),
        ("AUTH_TOKEN", "./token"),
        ("SECRET_TTL", "1h"),
    ];
    let upstream = remote(&text, &variables);
    assert_eq!(upstream.address, "https://ca.example:2");
    assert_eq!(upstream.hostname.as_deref(), Some("b"));
    assert_eq!(upstream.root, None);
    assert_eq!(upstream.token.as_deref(), Some("./token".as_ref()));
    assert_eq!(upstream.headers.0, [("x-ca".to_owned(), "1".to_owned())]);
    let xds = xds(&text, &variables).unwrap();
    assert!(!xds.on_demand);
    assert_eq!(xds.upstream.address, "https://xds.example:2");
    assert_eq!(xds.upstream.hostname.as_deref(), Some("c"));
    assert_eq!(xds.upstream.root.as_deref(), Some("x.pem".as_ref()));
    assert_eq!(
        xds.upstream.headers.0,
        [("x-xds".to_owned(), "2".to_owned())]
    );
}

#[test]
fn istiod_is_the_default_in_a_pod_of_a_cluster() {
    let variables = [IN_A_POD, ("NODE_NAME", "n")];
    assert_eq!(
        remote("", &variables).address,
        "https://istiod.istio-system.svc:15012"
    );
    assert_eq!(
        xds("", &variables).unwrap().upstream.address,
        "https://istiod.istio-system.svc:15012"
    );
    // With a local mesh and a local authority, istiod is not used.
    assert_eq!(xds(GOOD, &[IN_A_POD]), None);
    assert!(matches!(
        load(GOOD, &[IN_A_POD]).unwrap().ca,
        Authority::Local(_)
    ));
    // With an explicit address, both the local mesh and the control plane are used.
    assert!(xds(GOOD, &[("XDS_ADDRESS", "istiod:15012")]).is_some());
}

#[test]
fn pods_may_be_workloads_that_only_the_control_plane_knows() {
    let unknown = "{ workload: elsewhere, netns: /run/netns/e }";
    let text = GOOD.replace("pods:\n", &format!("pods:\n- {unknown}\n"));
    assert_ne!(text, GOOD);
    assert!(complaint(&text, &[]).contains("elsewhere"));
    assert!(load(&text, &[("XDS_ADDRESS", "istiod:15012")]).is_ok());
}

#[test]
fn one_authority_is_enough() {
    let text = GOOD.replace(
        LOCAL_CA,
        "ca: { local: { directory: state/ca }, address: \"https://ca:1\" }",
    );
    assert_eq!(
        complaint(&text, &[]),
        "ca.address: ca.local is set too; set only one of them"
    );
}

#[test]
fn the_environments_authority_takes_precedence_over_the_files() {
    assert_eq!(
        remote(GOOD, &[("CA_ADDRESS", "istiod:15012")]).address,
        "https://istiod:15012"
    );
}

#[test]
fn the_environment_turns_on_demand_discovery_on() {
    let variables = [("XDS_ADDRESS", "istiod:15012"), ("XDS_ON_DEMAND", "true")];
    let settings = load(GOOD, &variables).unwrap();
    assert!(settings.xds.unwrap().on_demand);
    assert_eq!(settings.warnings, Vec::<String>::new());
}

#[test]
fn a_token_in_place_of_its_file_is_refused_and_not_shown() {
    let variables = [("XDS_ADDRESS", "istiod:15012"), ("AUTH_TOKEN", "eyJhbGci")];
    let complaint = complaint(GOOD, &variables);
    assert!(complaint.starts_with("environment variable AUTH_TOKEN: the value is not the path"));
    assert!(!complaint.contains("eyJ"), "{complaint}");
    let variables = [("XDS_ROOT_CA", "-----BEGIN CERTIFICATE-----\nMII")];
    assert_eq!(
        super::complaint(GOOD, &variables),
        "environment variable XDS_ROOT_CA: the value is a certificate; write it to a file and set \
         the variable to the file's path"
    );
}

#[test]
fn the_roots_of_the_authoritys_address_are_no_roots_of_the_mesh() {
    let roots = |variables: &[(&str, &str)]| {
        let variables = [variables, &[("CA_ADDRESS", "istiod:15012")]].concat();
        match load(GOOD, &variables).unwrap().ca {
            Authority::Remote(remote) => remote.mesh_roots,
            Authority::Local(_) => panic!("expected a remote authority"),
        }
    };
    assert_eq!(roots(&[("CA_ROOT_CA", "/corporate.pem")]), None);
    let own = [("ZTUNNEL_MESH_ROOTS", "/mesh.pem")];
    assert_eq!(roots(&own), Some("/mesh.pem".into()));
}

#[test]
fn values_of_headers_are_not_shown() {
    let variables = [
        ("XDS_ADDRESS", "istiod:15012"),
        ("XDS_HEADER_authorization", "secret"),
    ];
    let settings = load(GOOD, &variables).unwrap();
    let shown = serde_json::to_string(&settings).unwrap() + &format!("{settings:?}");
    assert!(shown.contains("authorization"));
    assert!(!shown.contains("secret"));
}

#[test]
fn the_instance_comes_from_the_charts_variables() {
    let variables = [
        ("INSTANCE_IP", "10.0.0.9"),
        ("POD_NAME", "ztunnel-x"),
        ("POD_NAMESPACE", "istio-system"),
        ("ISTIO_META_DNS_CAPTURE", "true"),
    ];
    let instance = load(GOOD, &variables).unwrap().instance;
    assert_eq!(instance.ip, "10.0.0.9");
    assert_eq!(instance.pod, "ztunnel-x");
    assert_eq!(instance.namespace, "istio-system");
    assert_eq!(instance.cluster_domain, "cluster.local");
    assert_eq!(instance.metadata["DNS_CAPTURE"], "true");
}
