//! `ztunnel proxy`: runs the proxy of this node.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser};

use telemetry::{Filter, LogFormat};

/// Run this node's proxy
///
/// Settings come from these flags, the environment (variables of Istio's ztunnel chart, such as
/// NODE_NAME, RUST_LOG, LOG_FORMAT), the settings file and the defaults, in this order of
/// precedence. The settings file and the mesh file are watched: changes of pods, workloads,
/// services and policies take effect at once.
#[derive(Debug, Clone, Parser)]
#[command(after_help = "Examples:\n  \
    ztunnel proxy --config /etc/ztunnel/node-a.yaml\n  \
    ztunnel proxy --config node-a.yaml --log info,ztunnel::node::proxy=debug\n  \
    PROXY_MODE=dedicated PROXY_WORKLOAD_INFO=default/vm-1/default ztunnel proxy --config vm.yaml\n\n\
    It needs CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN (or root). SIGTERM stops it: open connections \
    may finish until the deadline (termination.deadline). A second signal stops it at once. The \
    kernel programs keep capturing, so that no connection leaves in plaintext while the proxy is \
    replaced; `ztunnel kernel remove` ends capture.\n\n\
    To replace a running proxy without a refused connection, start the new one next to it, with \
    --take-over if both are in one network namespace, and stop the old one when the new one is \
    ready.\n\n\
    Exit codes: 0 stopped by a signal or a request, 1 failure, 2 usage error.")]
pub(crate) struct ProxyArgs {
    /// The role to run; Istio's chart passes it, and `ztunnel` is the only one
    #[arg(value_name = "ROLE", value_parser = PossibleValuesParser::new(["ztunnel"]))]
    role: Option<String>,

    /// The settings file (YAML)
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// If another ztunnel in this network namespace uses the admin, metrics and readiness ports, wait
    /// for its handover instead of failing
    ///
    /// A new ztunnel always becomes the standby proxy if another one is active on the node, requests
    /// a handover, and serves the pods before the other one stops serving them. In a pod of its own
    /// it has its own ports, and does not need this flag.
    #[arg(long)]
    pub take_over: bool,

    /// Settings given as flags.
    #[command(flatten)]
    pub overrides: Overrides,
}

/// The settings that have flags.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct Overrides {
    /// This node's name [settings: node]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,

    /// Worker threads that carry traffic [settings: threads]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    /// The log's filter: a level, or levels by target [settings: log.filter]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<Filter>,

    /// The format of log lines: text or json [settings: log.format]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// The address of the admin interface, on loopback [settings: admin.address]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,

    /// The address of the metrics server [settings: metrics.address]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,

    /// The address of the readiness server [settings: readiness.address]
    #[arg(long, value_name = "ADDRESS")]
    pub readiness: Option<SocketAddr>,
}

impl From<Overrides> for settings::Overrides {
    fn from(flags: Overrides) -> Self {
        Self {
            node: flags.node,
            threads: flags.threads,
            log_filter: flags.log.map(|filter| filter.to_string()),
            log_format: flags.log_format.map(|format| match format {
                LogFormat::Text => settings::LogFormat::Text,
                LogFormat::Json => settings::LogFormat::Json,
            }),
            admin: flags.admin,
            metrics: flags.metrics,
            readiness: flags.readiness,
            ..Self::default()
        }
    }
}
