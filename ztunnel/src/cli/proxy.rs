//! `ztunnel proxy`: run this node.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser};

use telemetry::{Filter, LogFormat};

/// Run this node's proxy
///
/// Settings come from, strongest first: these flags, the environment (the names of Istio's
/// ztunnel chart, such as NODE_NAME, RUST_LOG, LOG_FORMAT), the settings file, defaults. The
/// settings file and the mesh file are watched: pods, workloads, services and policies follow
/// their changes while traffic flows.
#[derive(Debug, Clone, Parser)]
#[command(after_help = "Examples:\n  \
    ztunnel proxy --config /etc/ztunnel/node-a.yaml\n  \
    ztunnel proxy --config node-a.yaml --log info,ztunnel::path=debug\n  \
    PROXY_MODE=dedicated PROXY_WORKLOAD_INFO=default/vm-1/default ztunnel proxy --config vm.yaml\n\n\
    It needs CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN (or root). Stop it with SIGTERM: connections \
    may finish until the grace period is over. Capture stays in the kernel, so that nothing leaves \
    in the clear while the proxy is being replaced; `ztunnel kernel remove` ends it. A second signal \
    ends it at once.\n\n\
    To replace a running proxy without a refused connection, start the new one beside it, with \
    --take-over if both are in one network namespace, and end the old one when the new one is ready.")]
pub(crate) struct ProxyArgs {
    /// The role to run; Istio's chart names it, there is only this one
    #[arg(value_name = "ROLE", value_parser = PossibleValuesParser::new(["ztunnel"]))]
    role: Option<String>,

    /// The settings file (YAML)
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Wait for the ports of administration, metrics and readiness where another ztunnel of this
    /// network namespace has them, until it has handed over; without this that is an error
    ///
    /// A ztunnel that finds another one in charge of the node's pods always waits beside it, asks it
    /// to hand over, and serves the pods before the other one lets go of them. In a pod of its own it
    /// has its own ports and needs no flag for that.
    #[arg(long)]
    pub take_over: bool,

    /// Settings given as flags.
    #[command(flatten)]
    pub overrides: Overrides,
}

/// Settings that flags override.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct Overrides {
    /// This node's name [settings: node]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,

    /// Worker threads that carry traffic [settings: threads]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    /// What is logged: a level, or levels by target [settings: log.filter]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<Filter>,

    /// How log lines look: text or json [settings: log.format]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Where administration listens; keep it on loopback [settings: admin.address]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,

    /// Where Prometheus finds metrics [settings: metrics.address]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,

    /// Where the readiness probe is answered [settings: readiness.address]
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
