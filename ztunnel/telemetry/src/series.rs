//! One series: the counters of all connections between the same two workloads, and its key.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh::{Identity, Service, Workload};

/// The end of the connection at which this proxy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's end: the connection is outbound.
    Source,
    /// The server's end: the connection is inbound.
    Destination,
}

impl Reporter {
    /// The value of the label `reporter`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    /// The access log's `direction`.
    #[must_use]
    pub const fn direction(self) -> &'static str {
        match self {
            Self::Source => "outbound",
            Self::Destination => "inbound",
        }
    }
}

/// The protection of the connection between the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SecurityPolicy {
    /// In an HBONE tunnel.
    MutualTls,
    /// None that the proxy knows of.
    Unknown,
}

impl SecurityPolicy {
    /// The value of the label `connection_security_policy`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Unknown => "unknown",
        }
    }
}

/// The reason why a connection failed, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// None of the others: the connection succeeded, or failed while it carried data.
    None,
    /// A policy refused it.
    Deny,
    /// The destination could not be reached.
    Connect,
    /// The TLS handshake failed.
    TlsFailure,
    /// The HTTP/2 handshake or the CONNECT request failed after the TLS handshake.
    H2HandshakeFailure,
    /// A timeout that a Kubernetes NetworkPolicy on port 15008 can cause.
    NetworkPolicy,
    /// The workload has no certificate, or the peer's identity was not the expected one.
    IdentityError,
    /// The peer's certificate was revoked.
    CertRevoked,
}

impl ResponseFlag {
    pub(super) const ALL: [Self; 8] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2HandshakeFailure,
        Self::NetworkPolicy,
        Self::IdentityError,
        Self::CertRevoked,
    ];

    /// The value of the label `response_flags`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

/// The key by which connections share a series. Keys are compared by the ids of their objects, not
/// by their contents: [`super::Telemetry::series`] compares the pointers and builds the labels anew
/// when a workload has changed.
#[derive(Debug, Clone)]
pub struct SeriesKey {
    /// The end of the connection at which this proxy is.
    pub reporter: Reporter,
    /// The client, if it is known.
    pub source: Option<Arc<Workload>>,
    /// The server, if it is known.
    pub destination: Option<Arc<Workload>>,
    /// The service that was dialled, if any.
    pub service: Option<Arc<Service>>,
    /// The client's identity that mutual TLS proved. Istio's ztunnel writes `unknown` without a
    /// proof, so it is `None` then.
    pub source_principal: Option<Identity>,
    /// The server's identity; `None` means that of the destination workload.
    pub destination_principal: Option<Identity>,
    /// The protection of the connection.
    pub security: SecurityPolicy,
}

type Ids<'a> = (
    Reporter,
    SecurityPolicy,
    Option<&'a str>,
    Option<&'a str>,
    Option<(&'a str, &'a str)>,
    Option<&'a str>,
    Option<&'a str>,
);

impl SeriesKey {
    /// A key with unknown ends: only the reporter and the security policy.
    #[must_use]
    pub const fn unknown(reporter: Reporter, security: SecurityPolicy) -> Self {
        Self {
            reporter,
            source: None,
            destination: None,
            service: None,
            source_principal: None,
            destination_principal: None,
            security,
        }
    }

    fn ids(&self) -> Ids<'_> {
        (
            self.reporter,
            self.security,
            self.source.as_ref().map(|w| &*w.uid.0),
            self.destination.as_ref().map(|w| &*w.uid.0),
            self.service.as_ref().map(|s| (&*s.namespace, &*s.hostname)),
            self.source_principal.as_ref().map(Identity::as_str),
            self.destination_principal.as_ref().map(Identity::as_str),
        )
    }

    /// Whether `other`, which has the same ids, also has the same objects.
    pub(super) fn same_objects(&self, other: &Self) -> bool {
        fn same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
            a.map(Arc::as_ptr) == b.map(Arc::as_ptr)
        }
        same(self.source.as_ref(), other.source.as_ref())
            && same(self.destination.as_ref(), other.destination.as_ref())
            && same(self.service.as_ref(), other.service.as_ref())
    }
}

impl PartialEq for SeriesKey {
    fn eq(&self, other: &Self) -> bool {
        self.ids() == other.ids()
    }
}

impl Eq for SeriesKey {}

impl Hash for SeriesKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.ids().hash(state);
    }
}

/// A counter. Its memory order is relaxed, because no other memory access depends on it.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The current value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one set of labels.
#[derive(Debug, Default)]
pub struct Series {
    /// Connections that were opened.
    pub opened: Count,
    /// Connections that ended without an error. [`Self::failed`] counts the others.
    pub closed: Count,
    /// Bytes from destination to source, whichever end reports: Istio defines the TCP metrics so
    /// (istio/istio issue 32399).
    pub sent_bytes: Count,
    /// Bytes from source to destination, whichever end reports.
    pub received_bytes: Count,
    failures: [Count; ResponseFlag::ALL.len()],
}

impl Series {
    /// Counts a connection that ended with an error: as closed and as failed, both with `flag`.
    pub fn failed(&self, flag: ResponseFlag) {
        self.failures[flag as usize].inc();
    }

    /// The number of connections that ended with an error and `flag`.
    #[must_use]
    pub fn failures(&self, flag: ResponseFlag) -> u64 {
        self.failures[flag as usize].get()
    }
}
