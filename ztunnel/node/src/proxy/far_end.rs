//! The far end of a tunnel, as messages name it.

use std::fmt;

use mesh::route::HopKind;

/// The role of a tunnel's far end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum FarEnd {
    /// The proxy of the destination, or of the client.
    #[default]
    Proxy,
    Waypoint,
    NetworkGateway,
}

impl FarEnd {
    pub(super) const fn of(kind: &HopKind) -> Self {
        match kind {
            HopKind::Destination => Self::Proxy,
            HopKind::Waypoint => Self::Waypoint,
            HopKind::NetworkGateway { .. } => Self::NetworkGateway,
        }
    }

    /// The prefix of errors about a tunnel that could not be opened.
    pub(super) const fn prefix(self) -> &'static str {
        match self {
            Self::Proxy => "",
            Self::Waypoint => "tunnel to the waypoint: ",
            Self::NetworkGateway => "tunnel to the network gateway: ",
        }
    }

    /// The text after the word "tunnel".
    pub(super) const fn suffix(self) -> &'static str {
        match self {
            Self::Proxy => "",
            Self::Waypoint => " to the waypoint",
            Self::NetworkGateway => " to the network gateway",
        }
    }
}

impl fmt::Display for FarEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proxy => "the proxy of the destination",
            Self::Waypoint => "the waypoint",
            Self::NetworkGateway => "the network gateway",
        })
    }
}
