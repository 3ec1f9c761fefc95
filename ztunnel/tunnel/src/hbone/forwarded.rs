//! The `forwarded` header (RFC 7239): the original source address of a connection that a gateway
//! forwards, and the name of the dialled service, if any.
//!
//! Only the first element is read: the address of its `for`, and its `host`. `node::proxy` decides
//! whether to trust the address: the TLS peer must be a waypoint or gateway of the destination. The
//! host is for telemetry only.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderValue;

/// A longer header is ignored, in bytes.
const HEADER_MAX: usize = 1024;

/// The parameters of a header. `None`: the header does not have the parameter.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The address in `for`.
    pub client: Option<IpAddr>,
    /// The name in `host`.
    pub host: Option<String>,
}

/// Encodes `for=10.0.0.1`, or `for="[2001:db8::1]"` (RFC 7239, section 6: IPv6 is bracketed and
/// quoted), and `;host=` if the name needs no quotes. A name that needs quotes is left out.
///
/// # Errors
/// None in practice: an address and a token are valid in a header.
pub fn encode(
    source: IpAddr,
    host: Option<&str>,
) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    let mut text = match source {
        IpAddr::V4(ip) => format!("for={ip}"),
        IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
    };
    if let Some(host) = host.filter(|host| is_token(host)) {
        text.push_str(";host=");
        text.push_str(host);
    }
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text))
}

/// A token (RFC 9110, section 5.6.2).
fn is_token(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(fits)
}

/// Reads a header. Existing proxies write the address bare or quoted, with or without a port, and
/// IPv6 also without brackets; all of these forms are accepted.
#[must_use]
pub fn decode(value: &HeaderValue) -> Forwarded {
    let text = value.to_str().ok();
    let Some(text) = text.filter(|text| text.len() <= HEADER_MAX) else {
        return Forwarded::default();
    };
    let first = text.split(',').next().unwrap_or_default();
    let parameter = |name: &str| {
        first.split(';').find_map(|pair| {
            let (key, value) = pair.trim().split_once('=')?;
            key.eq_ignore_ascii_case(name)
                .then(|| unquoted(value.trim()))
        })
    };
    Forwarded {
        client: parameter("for").and_then(address),
        host: parameter("host")
            .filter(|host| !host.is_empty())
            .map(str::to_owned),
    }
}

fn unquoted(text: &str) -> &str {
    let inside = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    inside.unwrap_or(text)
}

fn address(node: &str) -> Option<IpAddr> {
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
