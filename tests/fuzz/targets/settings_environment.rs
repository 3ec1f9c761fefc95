//! The environment: known variables with arbitrary values, and unknown ones.
#![no_main]

use std::path::Path;

use arbitrary::Arbitrary;
use settings::{Environment, Overrides, SettingsFile, from_text};
use ztunnel_fuzz::fuzz_target;

const NAMES: &[&str] = &[
    "NODE_NAME",
    "CLUSTER_ID",
    "ISTIO_META_CLUSTER_ID",
    "ISTIO_META_",
    "ISTIO_META_DNS_CAPTURE",
    "NETWORK",
    "PROXY_MODE",
    "PROXY_WORKLOAD_INFO",
    "LOCAL_XDS_PATH",
    "LOCAL_XDS",
    "INPOD_ENABLED",
    "INPOD_UDS",
    "FAKE_CA",
    "SECRET_TTL",
    "KUBERNETES_SERVICE_HOST",
    "XDS_ADDRESS",
    "XDS_ROOT_CA",
    "ALT_XDS_HOSTNAME",
    "XDS_HEADER_",
    "XDS_HEADER_x",
    "CA_ADDRESS",
    "CA_ROOT_CA",
    "ZTUNNEL_MESH_ROOTS",
    "ALT_CA_HOSTNAME",
    "CA_HEADER_x",
    "AUTH_TOKEN",
    "CRL_PATH",
    "XDS_ON_DEMAND",
    "INSTANCE_IP",
    "POD_NAME",
    "POD_NAMESPACE",
    "CLUSTER_DOMAIN",
    "TERMINATION_GRACE_PERIOD_SECONDS",
    "CONNECTION_TERMINATION_DEADLINE",
    "PACKET_MARK",
    "ZTUNNEL_CAPTURE_VERDICTS",
    "ZTUNNEL_SAME_NODE",
    "ZTUNNEL_ACCELERATION",
    "KEEPALIVE_ENABLED",
    "KEEPALIVE_TIME",
    "KEEPALIVE_INTERVAL",
    "KEEPALIVE_RETRIES",
    "POOL_MAX_STREAMS_PER_CONNECTION",
    "POOL_UNUSED_RELEASE_TIMEOUT",
    "HTTP2_STREAM_WINDOW_SIZE",
    "HTTP2_CONNECTION_WINDOW_SIZE",
    "HTTP2_FRAME_SIZE",
    "ZTUNNEL_WORKER_THREADS",
    "ZTUNNEL_CPU_LIMIT",
    "RUST_LOG",
    "LOG_FORMAT",
    "SERVICE_ACCOUNT",
];

#[derive(Debug, Arbitrary)]
struct Variable<'a> {
    name: u8,
    other: &'a str,
    value: &'a str,
}

fuzz_target!(|input: (Vec<Variable<'_>>, &str)| {
    let (variables, named) = input;
    let pairs = variables.iter().map(|variable| {
        let known = NAMES.get(usize::from(variable.name));
        let name = known.copied().unwrap_or(variable.other);
        (name.to_owned(), variable.value.to_owned())
    });
    let Ok(environment) = Environment::read(pairs) else {
        return;
    };
    let file = SettingsFile {
        path: Path::new(""),
        text: "",
    };
    let read_file = |_: &Path| Ok(named.to_owned());
    if let Ok(settings) = from_text(file, &environment, &Overrides::default(), read_file) {
        assert!(settings.threads.get() > 0);
    }
});
