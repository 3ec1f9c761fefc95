//! The CONNECT request as plain data: its authority and its headers.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use super::baggage::Baggage;
use super::forwarded::{self, Forwarded};
use super::trace::TraceParent;
use mesh::Authority;

/// W3C Baggage.
pub(crate) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// W3C Trace Context.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Converts an authority to the type of the `http` crate.
///
/// # Errors
/// For a host name that `Authority`'s parser did not check.
pub fn to_http(authority: &Authority) -> Result<http::uri::Authority, http::uri::InvalidUri> {
    http::uri::Authority::from_maybe_shared(Bytes::from(authority.to_string()))
}

/// The CONNECT request of a tunnel to open.
#[derive(Debug, Clone)]
pub struct Connect {
    /// The real destination.
    pub authority: Authority,
    /// The original source address; the receiver trusts it only from a gateway it knows.
    pub forwarded: Option<IpAddr>,
    /// The name of the dialled service; sent only together with the source address.
    pub host: Option<Arc<str>>,
    /// The trace that the tunnel belongs to.
    pub traceparent: Option<TraceParent>,
    /// The source workload as [`Baggage::encode`] writes it.
    pub baggage: Option<HeaderValue>,
}

impl Connect {
    /// A tunnel to an address, without headers.
    #[must_use]
    pub fn to(authority: impl Into<Authority>) -> Self {
        Self {
            authority: authority.into(),
            forwarded: None,
            host: None,
            traceparent: None,
            baggage: None,
        }
    }

    /// The request without `:path` and `:scheme`, as CONNECT must be (RFC 9113, section 8.5).
    pub(crate) fn to_http(&self) -> Result<http::Request<()>, http::Error> {
        let mut parts = http::uri::Parts::default();
        parts.authority = Some(to_http(&self.authority)?);
        let mut request = http::Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = Uri::from_parts(parts)?;
        let headers = request.headers_mut();
        if let Some(source) = self.forwarded {
            let value = forwarded::encode(source, self.host.as_deref())?;
            headers.insert(http::header::FORWARDED, value);
        }
        if let Some(trace) = self.traceparent {
            headers.insert(TRACEPARENT, trace.encode()?);
        }
        if let Some(baggage) = &self.baggage {
            headers.insert(BAGGAGE, baggage.clone());
        }
        Ok(request)
    }
}

/// Why a request is answered with 400 before any policy is evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Only CONNECT opens a tunnel.
    #[error("method {method} (expected CONNECT)")]
    Method {
        /// The method of the request.
        method: Method,
    },
    /// The authority is not a valid destination.
    #[error("authority {authority:?} (expected ip:port or hostname:port)")]
    Authority {
        /// The authority of the request, at most 256 characters.
        authority: String,
    },
}

impl RequestError {
    /// The closed set of names for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Method { .. } => "method",
            Self::Authority { .. } => "authority",
        }
    }

    /// The side that caused the failure.
    #[must_use]
    pub fn fault(&self) -> super::error::Fault {
        super::error::Fault::Downstream
    }
}

/// The checked content of a CONNECT.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) authority: Authority,
    pub(crate) forwarded: Forwarded,
    pub(crate) traceparent: Option<TraceParent>,
    pub(crate) baggage: Baggage,
}

/// Reads a request. Only the method and the authority are checked strictly: an unusable header is
/// treated as absent.
pub(crate) fn parse(head: &http::request::Parts) -> Result<Parsed, RequestError> {
    if head.method != Method::CONNECT {
        return Err(RequestError::Method {
            method: head.method.clone(),
        });
    }
    let authority = head
        .uri
        .authority()
        .map_or("", http::uri::Authority::as_str);
    let authority: Authority = authority
        .parse()
        .map_err(|error: mesh::ParseAuthorityError| RequestError::Authority {
            authority: error.text,
        })?;
    let headers: &HeaderMap = &head.headers;
    Ok(Parsed {
        authority,
        forwarded: headers
            .get(http::header::FORWARDED)
            .map(forwarded::decode)
            .unwrap_or_default(),
        traceparent: headers.get(TRACEPARENT).and_then(TraceParent::decode),
        baggage: Baggage::decode(headers.get_all(BAGGAGE)),
    })
}
