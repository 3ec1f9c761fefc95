//! The destination of a tunnel: the `:authority` of its CONNECT request.
//!
//! It is `ip:port` between node proxies and `hostname:port` towards a waypoint or gateway. Parsing
//! and printing returns the same bytes, except that addresses take their canonical spelling.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The longest host name of DNS (RFC 1035, section 2.3.4).
const HOST_MAX: usize = 253;

/// The destination of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// An address and port.
    Address(SocketAddr),
    /// A host name and port. The name is not empty and holds only letters, digits, `-`, `_`
    /// and `.`.
    Host(Box<str>, u16),
}

/// A text is not the destination of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a destination: expected ip:port, [ipv6]:port or hostname:port")]
pub struct ParseAuthorityError {
    /// The first 256 characters of the text.
    pub text: String,
}

impl Authority {
    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host(_, port) => *port,
        }
    }
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Not SocketAddr's own Display: it would print an IPv6 scope id.
            Self::Address(address) => match address.ip() {
                IpAddr::V4(ip) => write!(f, "{ip}:{}", address.port()),
                IpAddr::V6(ip) => write!(f, "[{ip}]:{}", address.port()),
            },
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl FromStr for Authority {
    type Err = ParseAuthorityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseAuthorityError {
            text: text.chars().take(256).collect(),
        })
    }
}

fn parse(text: &str) -> Option<Authority> {
    let (host, port) = text.rsplit_once(':')?;
    // `u16::from_str` would accept a leading plus.
    if port.len() > 5 || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let port = port.parse().ok().filter(|&port: &u16| port != 0)?;
    if let Some(inner) = host.strip_prefix('[') {
        let ip: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some(Authority::Address(SocketAddr::new(ip.into(), port)));
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Some(Authority::Address(SocketAddr::new(ip.into(), port)));
    }
    is_host(host).then(|| Authority::Host(host.into(), port))
}

/// Whether a text is a host name of DNS or Kubernetes. A last label of digits only is refused: such
/// a text is a mistyped address (WHATWG URL, "ends in a number").
fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    (1..=HOST_MAX).contains(&host.len())
        && host.split('.').all(label)
        && !host
            .rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
}
