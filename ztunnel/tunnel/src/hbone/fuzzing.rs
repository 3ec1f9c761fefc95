//! The door for the fuzz targets: the headers of a CONNECT.

use std::net::IpAddr;

use http::HeaderValue;

use super::{Authority, TraceParent, forwarded};

/// Reads a `forwarded` header.
#[must_use]
pub fn forwarded(value: &HeaderValue) -> Option<IpAddr> {
    forwarded::decode(value).client
}

/// Writes one.
#[must_use]
pub fn forwarded_of(source: IpAddr) -> Option<HeaderValue> {
    forwarded::encode(source, None).ok()
}

/// Reads a `traceparent` header.
#[must_use]
pub fn traceparent(value: &HeaderValue) -> Option<TraceParent> {
    TraceParent::decode(value)
}

/// Writes one.
#[must_use]
pub fn traceparent_of(trace: TraceParent) -> Option<HeaderValue> {
    trace.encode().ok()
}

/// The authority as it is put into a request.
#[must_use]
pub fn in_a_request(authority: &Authority) -> Option<http::uri::Authority> {
    authority.to_http().ok()
}
