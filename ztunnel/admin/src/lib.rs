//! What the proxy says about itself over HTTP: administration (15000), metrics (15020) and
//! readiness (15021).
//!
//! Three small HTTP/1 servers on the main thread's runtime, away from the threads that carry
//! traffic. They read what the rooms offer ([`Dump`], [`Telemetry`], [`Readiness`]) and change
//! only the log's filter; `/quitquitquit` asks `node` to stop. Whoever can reach the
//! administration port may do all that, so it belongs on loopback. Called by `node`.

mod http;
mod pages;
mod readiness;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use readiness::{Pending, Readiness};

use mesh::Fault;
use telemetry::{LogHandle, Telemetry};

/// What a room shows in `/config_dump`. Nothing secret: keys stay out.
pub trait Dump: Send + Sync {
    /// The key in the JSON object, for example `workloads`.
    fn section(&self) -> &'static str;
    /// The value, read when somebody asks.
    fn dump(&self) -> serde_json::Value;
}

/// Where the three servers listen. Port 0 lets the kernel choose (see [`Servers`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Administration; loopback.
    pub admin: SocketAddr,
    /// Prometheus.
    pub metrics: SocketAddr,
    /// Kubernetes' readiness probe.
    pub readiness: SocketAddr,
}

impl Default for Config {
    /// The ports of Istio's ztunnel.
    fn default() -> Self {
        use std::net::{Ipv4Addr, Ipv6Addr};
        Self {
            admin: (Ipv4Addr::LOCALHOST, 15000).into(),
            metrics: (Ipv6Addr::UNSPECIFIED, 15020).into(),
            readiness: (Ipv6Addr::UNSPECIFIED, 15021).into(),
        }
    }
}

/// What the servers show and what they may change.
pub struct Sources {
    /// For the metrics server.
    pub telemetry: Arc<Telemetry>,
    /// For `/logging`; without one, that page says that it cannot.
    pub log: Option<LogHandle>,
    /// For the readiness server.
    pub readiness: Readiness,
    /// For `/config_dump`.
    pub dumps: Vec<Arc<dyn Dump>>,
    /// Called by `/quitquitquit`, perhaps more than once.
    pub quit: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sections: Vec<_> = self.dumps.iter().map(|dump| dump.section()).collect();
        f.debug_struct("Sources")
            .field("dumps", &sections)
            .finish_non_exhaustive()
    }
}

/// Why the servers could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({setting}){}", hint(source))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The settings key that names it.
        setting: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            ": another process, perhaps another ztunnel, has that port; choose another one"
        }
        std::io::ErrorKind::AddrNotAvailable => ": this machine does not have that address",
        _ => "",
    }
}

impl Error {
    /// A closed set, for labels and fields.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Bind { .. } => "admin_bind",
        }
    }

    /// Whether another process has the address.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        let Self::Bind { source, .. } = self;
        source.kind() == std::io::ErrorKind::AddrInUse
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Us
    }
}

/// The running servers and where they listen.
#[derive(Debug)]
pub struct Servers {
    /// Administration.
    pub admin: SocketAddr,
    /// Metrics.
    pub metrics: SocketAddr,
    /// Readiness.
    pub readiness: SocketAddr,
    tasks: [JoinHandle<()>; 3],
}

impl Servers {
    /// Waits until the servers have ended, which they do shortly after `shutdown` became true.
    pub async fn finished(self) {
        for task in self.tasks {
            if let Err(error) = task.await
                && error.is_panic()
            {
                tracing::error!(%error, "an administration server ended badly");
            }
        }
    }
}

/// Starts the three servers on the runtime of the caller. They stop when `shutdown` becomes
/// true or its sender is gone.
///
/// # Errors
/// When one of the addresses cannot be listened on; none of the servers runs then.
pub fn start(
    config: &Config,
    sources: Sources,
    shutdown: &watch::Receiver<bool>,
) -> Result<Servers, Error> {
    Ok(bind(config)?.serve(sources, shutdown))
}

/// The servers' listeners, before there is anything to show.
#[derive(Debug)]
pub struct Bound {
    admin: http::Listener,
    metrics: http::Listener,
    readiness: http::Listener,
}

/// Takes the three addresses. A process that cannot have them has no business with what another
/// one runs, so this comes before anything is touched.
///
/// # Errors
/// When one of them cannot be listened on.
pub fn bind(config: &Config) -> Result<Bound, Error> {
    let listen = |address, setting| {
        http::Listener::bind(address).map_err(|source| Error::Bind {
            address,
            setting,
            source,
        })
    };
    Ok(Bound {
        admin: listen(config.admin, "admin.address")?,
        metrics: listen(config.metrics, "metrics.address")?,
        readiness: listen(config.readiness, "readiness.address")?,
    })
}

impl Bound {
    /// Serves on the runtime of the caller until `shutdown` becomes true or its sender is gone.
    #[must_use]
    pub fn serve(self, sources: Sources, shutdown: &watch::Receiver<bool>) -> Servers {
        let sources = Arc::new(sources);
        let serve = |listener: http::Listener, pages: pages::Pages| {
            let sources = sources.clone();
            let answer = move |request: &http::Ask| pages::answer(pages, request, &sources);
            tokio::spawn(listener.serve(Arc::new(answer), shutdown.clone()))
        };
        Servers {
            admin: self.admin.address(),
            metrics: self.metrics.address(),
            readiness: self.readiness.address(),
            tasks: [
                serve(self.admin, pages::Pages::Admin),
                serve(self.metrics, pages::Pages::Metrics),
                serve(self.readiness, pages::Pages::Readiness),
            ],
        }
    }
}

#[cfg(test)]
mod tests;
