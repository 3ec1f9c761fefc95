//! The HTTP servers of the proxy: admin (15000), metrics (15020) and readiness (15021).
//!
//! They run on the main thread's runtime, apart from the threads that carry traffic. They read the
//! state that the other crates provide ([`Dump`], [`Telemetry`], [`Readiness`]) and change only the
//! log's filter; `/quitquitquit` makes `node` stop. The admin server listens on loopback; who may use
//! it is in `access`. Called by `node`.

mod access;
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

/// A section of `/config_dump`. It must not contain secrets such as private keys.
pub trait Dump: Send + Sync {
    /// The key in the JSON object, for example `workloads`.
    fn section(&self) -> &'static str;
    /// The value at the time of the request.
    fn dump(&self) -> serde_json::Value;
}

/// The addresses of the three servers. For port 0 the kernel chooses a port (see [`Servers`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The admin server, on loopback.
    pub admin: SocketAddr,
    /// The metrics server.
    pub metrics: SocketAddr,
    /// The readiness server.
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

/// The state that the servers show and change.
pub struct Sources {
    /// For the metrics server.
    pub telemetry: Arc<Telemetry>,
    /// For `/logging`; without one, that page answers 501.
    pub log: Option<LogHandle>,
    /// For the readiness server.
    pub readiness: Readiness,
    /// For `/config_dump`.
    pub dumps: Vec<Arc<dyn Dump>>,
    /// Called by each request of `/quitquitquit`.
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

/// A failure to start the servers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A server cannot listen on its address.
    #[error("cannot listen on {address} ({setting}){}", hint(source))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The settings key of the address.
        setting: &'static str,
        /// The operating system's error.
        source: std::io::Error,
    },
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            ": another process, possibly another ztunnel, uses this port; choose another one"
        }
        std::io::ErrorKind::AddrNotAvailable => ": this machine does not have the address",
        _ => "",
    }
}

impl Error {
    /// A stable name, for labels and fields.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Bind { .. } => "admin_bind",
        }
    }

    /// Whether another process uses the address.
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

/// The running servers and their addresses.
#[derive(Debug)]
pub struct Servers {
    /// The admin server's address.
    pub admin: SocketAddr,
    /// The metrics server's address.
    pub metrics: SocketAddr,
    /// The readiness server's address.
    pub readiness: SocketAddr,
    tasks: [JoinHandle<()>; 3],
}

impl Servers {
    /// Waits until the servers have stopped, shortly after `shutdown` became true.
    pub async fn finished(self) {
        for task in self.tasks {
            if let Err(error) = task.await
                && error.is_panic()
            {
                tracing::error!(%error, "an admin server ended with a panic");
            }
        }
    }
}

/// Starts the three servers on the runtime of the caller. They stop when `shutdown` becomes true or
/// its sender is dropped.
///
/// # Errors
/// If one of the addresses is not available; no server runs then.
pub fn start(
    config: &Config,
    sources: Sources,
    shutdown: &watch::Receiver<bool>,
) -> Result<Servers, Error> {
    Ok(bind(config)?.serve(sources, shutdown))
}

/// The servers' listeners, before the servers run.
#[derive(Debug)]
pub struct Bound {
    admin: http::Listener,
    metrics: http::Listener,
    readiness: http::Listener,
}

/// Binds the three addresses. This is the first step of a start: a process that cannot have the
/// addresses must not touch the state of the process that has them.
///
/// # Errors
/// If one of the addresses is not available.
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
    /// Serves on the runtime of the caller until `shutdown` becomes true or its sender is dropped.
    #[must_use]
    pub fn serve(self, sources: Sources, shutdown: &watch::Receiver<bool>) -> Servers {
        let sources = Arc::new(sources);
        let serve = |listener: http::Listener, pages: pages::Pages| {
            let sources = sources.clone();
            let respond =
                move |request: &http::PageRequest| pages::respond(pages, request, &sources);
            tokio::spawn(listener.serve(Arc::new(respond), shutdown.clone()))
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
