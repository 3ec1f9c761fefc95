//! The `forwarded` header (RFC 7239): whose connection this is, when a gateway speaks for it.
//!
//! Only the first `for` is read, and only its address. Whether it may be believed is decided by
//! `path`: it is the TLS peer that must be a waypoint or gateway named by the destination.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderValue;

/// An element is short; whatever is longer is not for us.
const HEADER_MAX: usize = 1024;

/// `for=10.0.0.1`, or `for="[2001:db8::1]"` (RFC 7239, section 6: IPv6 is bracketed and quoted).
pub(crate) fn encode(source: IpAddr) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    let text = match source {
        IpAddr::V4(ip) => format!("for={ip}"),
        IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
    };
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text))
}

/// The address of the first `for`. Proxies in the field write it bare or quoted, with or without
/// a port, and IPv6 also without brackets; all of these are read.
pub(crate) fn decode(value: &HeaderValue) -> Option<IpAddr> {
    let text = value
        .to_str()
        .ok()
        .filter(|text| text.len() <= HEADER_MAX)?;
    let first = text.split(',').next()?;
    let node = first.split(';').find_map(|pair| {
        let (key, node) = pair.trim().split_once('=')?;
        key.eq_ignore_ascii_case("for").then(|| node.trim())
    })?;
    let node = node
        .strip_prefix('"')
        .and_then(|node| node.strip_suffix('"'))
        .unwrap_or(node);
    let bracketed = || {
        node.strip_prefix('[')?
            .strip_suffix(']')?
            .parse::<Ipv6Addr>()
            .ok()
    };
    node.parse()
        .ok()
        .or_else(|| bracketed().map(IpAddr::V6))
        .or_else(|| node.parse::<SocketAddr>().ok().map(|address| address.ip()))
}
