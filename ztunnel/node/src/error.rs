//! The error of a node that could not start or stopped early.

use crate::{bpf, proxy};
use settings::ConfigError;
use telemetry::{FilterError, LogError};
use tunnel::tls;
use upstream::ads;
use upstream::ca::istiod::IstiodError;
use upstream::ca::local::LocalCaError;

/// Why the node could not start, or stopped early.
#[derive(Debug, thiserror::Error)]
#[allow(
    missing_docs,
    reason = "each variant is the error of the module it names"
)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("log.filter: {0}")]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Kernel(#[from] bpf::Error),
    #[error(transparent)]
    Ca(#[from] LocalCaError),
    #[error(transparent)]
    Istiod(#[from] IstiodError),
    #[error(transparent)]
    Xds(#[from] ads::ConfigError),
    #[error(transparent)]
    Revocation(#[from] tls::RevocationError),
    #[error(transparent)]
    Admin(#[from] admin::Error),
    #[error(transparent)]
    Worker(#[from] proxy::WorkerError),
    #[error(
        "the client of the {0} has stopped: this node would miss every further update; restart \
         the proxy"
    )]
    Ended(&'static str),
    #[error("cannot start the event loop: {0}")]
    Runtime(#[source] std::io::Error),
}
