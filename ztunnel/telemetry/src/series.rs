//! One series: the counters of all connections between the same two workloads, and the key it
//! is found by.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh::{Identity, Service, Workload};

/// Which end of the connection this proxy stands at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// At the client's: the connection is outbound.
    Source,
    /// At the server's: the connection is inbound.
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

/// How the connection travels between the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SecurityPolicy {
    /// In an HBONE tunnel.
    MutualTls,
    /// As it is.
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

/// Why a connection failed, as a label: a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// Nothing of the below: all went well, or it broke while bytes were flowing.
    None,
    /// A policy refused it.
    Deny,
    /// The destination could not be reached.
    Connect,
    /// The TLS handshake failed.
    TlsFailure,
    /// TLS stood, but the HTTP/2 handshake or the CONNECT request failed.
    H2HandshakeFailure,
    /// Timed out in a way that a Kubernetes NetworkPolicy on port 15008 explains.
    NetworkPolicy,
    /// No certificate for the workload, or not the identity that was expected.
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

/// What makes two connections count together. Compared by the ids of what it names, not by
/// their contents: when a workload's contents change, [`super::Telemetry::series`] notices by
/// the pointer and puts the labels together anew.
#[derive(Debug, Clone)]
pub struct SeriesKey {
    /// Where this proxy stands.
    pub reporter: Reporter,
    /// The client, if it is known.
    pub source: Option<Arc<Workload>>,
    /// The server, if it is known.
    pub destination: Option<Arc<Workload>>,
    /// The service that was dialled, if one was.
    pub service: Option<Arc<Service>>,
    /// The client's identity as mutual TLS proved it. Istio's ztunnel writes `unknown` where
    /// nothing was proved, so leave it out then.
    pub source_principal: Option<Identity>,
    /// The server's identity; the destination workload's own one when left out.
    pub destination_principal: Option<Identity>,
    /// How it travels.
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
    /// Both ends unknown: nothing but the direction and the security policy.
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

    /// Whether `other`, which has the same ids, also names the same objects.
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

/// A number that only grows. Relaxed: nobody orders anything by it.
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

    /// The sum so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one set of labels.
#[derive(Debug, Default)]
pub struct Series {
    /// Connections that began.
    pub opened: Count,
    /// Connections that ended well. Those that failed are counted by [`Self::failed`].
    pub closed: Count,
    /// Bytes of the response direction (destination to source), whichever end reports: Istio
    /// defines the TCP metrics so (istio/istio issue 32399).
    pub sent_bytes: Count,
    /// Bytes of the request direction (source to destination), whichever end reports.
    pub received_bytes: Count,
    failures: [Count; ResponseFlag::ALL.len()],
}

impl Series {
    /// Counts a connection that ended badly: as closed and as failed, both with `flag`.
    pub fn failed(&self, flag: ResponseFlag) {
        self.failures[flag as usize].inc();
    }

    /// How many connections ended badly with `flag`.
    #[must_use]
    pub fn failures(&self, flag: ResponseFlag) -> u64 {
        self.failures[flag as usize].get()
    }
}
