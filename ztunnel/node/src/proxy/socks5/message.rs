//! The messages of SOCKS version 5 (RFC 1928): decoding and encoding.
//!
//! A reader passes the bytes that it has. The result states the total length that the message
//! needs, as far as it is known. So no byte after the message is read, and no message is longer
//! than [`MAX_LENGTH`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The longest message: a request with a name of 255 bytes.
pub const MAX_LENGTH: usize = 4 + 1 + 255 + 2;

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;
/// The longest DNS name (RFC 1035, 2.3.4), without the trailing dot.
const MAX_NAME: usize = 253;

/// The destination of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// An address.
    Address(SocketAddr),
    /// A name and a port. The name is in lower case, without a trailing dot.
    Name(Arc<str>, u16),
}

/// The progress of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress<T> {
    /// The message needs at least this many bytes in total.
    Needs(usize),
    /// The message is complete.
    Done(T),
}

/// Why a client's message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The version is not SOCKS 5.
    #[error("version {0} is not SOCKS 5")]
    Version(u8),
    /// The client offers no method without authentication.
    #[error("the client offers no method without authentication")]
    Methods,
    /// The command is not CONNECT.
    #[error("command {0} is not CONNECT")]
    Command(u8),
    /// The address type is unknown.
    #[error("address type {0} is not IPv4, IPv6 or a name")]
    AddressType(u8),
    /// The name is not a valid host name.
    #[error("the name is empty, too long, or has bytes that no host name has")]
    Name,
}

impl MessageError {
    /// The error reply to the client; `None` where the client would not understand it.
    #[must_use]
    pub fn answer(self) -> Option<Vec<u8>> {
        let code = match self {
            Self::Version(_) => return None,
            Self::Methods => return Some(vec![VERSION, 0xff]),
            Self::Command(_) => Reply::CommandNotSupported,
            Self::AddressType(_) => Reply::AddressTypeNotSupported,
            Self::Name => Reply::HostUnreachable,
        };
        Some(code.message().to_vec())
    }
}

/// The answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    /// The connection is established.
    Succeeded = 0,
    /// General failure.
    Failed = 1,
    /// Not allowed by a rule.
    NotAllowed = 2,
    /// Network unreachable.
    NetworkUnreachable = 3,
    /// Host unreachable, or unknown name.
    HostUnreachable = 4,
    /// Connection refused.
    Refused = 5,
    /// Command not supported; only CONNECT is.
    CommandNotSupported = 7,
    /// Address type not supported.
    AddressTypeNotSupported = 8,
}

impl Reply {
    /// The encoded reply. The bound address is left empty: clients do not need the proxy's address.
    #[must_use]
    pub const fn message(self) -> [u8; 10] {
        [VERSION, self as u8, 0, IPV4, 0, 0, 0, 0, 0, 0]
    }
}

/// The reply to a greeting: no authentication.
pub const CHOSEN: [u8; 2] = [VERSION, NO_AUTHENTICATION];

/// Decodes a greeting: the version and the offered authentication methods.
///
/// # Errors
/// When the version is another one, or no method without authentication is offered.
pub fn greeting(bytes: &[u8]) -> Result<Progress<()>, MessageError> {
    if let Some(&version) = bytes.first()
        && version != VERSION
    {
        return Err(MessageError::Version(version));
    }
    let Some(&count) = bytes.get(1) else {
        return Ok(Progress::Needs(2));
    };
    let length = 2 + usize::from(count);
    let Some(methods) = bytes.get(2..length) else {
        return Ok(Progress::Needs(length));
    };
    if methods.contains(&NO_AUTHENTICATION) {
        Ok(Progress::Done(()))
    } else {
        Err(MessageError::Methods)
    }
}

/// Decodes a request.
///
/// # Errors
/// When the request is not supported. The error is returned as soon as the unsupported part has
/// arrived.
pub fn request(bytes: &[u8]) -> Result<Progress<Destination>, MessageError> {
    if let Some(&version) = bytes.first()
        && version != VERSION
    {
        return Err(MessageError::Version(version));
    }
    let Some((&[_version, command, _reserved, kind], rest)) = bytes.split_first_chunk() else {
        return Ok(Progress::Needs(4));
    };
    if command != CONNECT {
        return Err(MessageError::Command(command));
    }
    match kind {
        IPV4 => Ok(address::<4, [u8; 4]>(rest)),
        IPV6 => Ok(address::<16, [u8; 16]>(rest)),
        NAME => named(rest),
        other => Err(MessageError::AddressType(other)),
    }
}

fn address<const OCTETS: usize, A>(rest: &[u8]) -> Progress<Destination>
where
    A: From<[u8; OCTETS]> + Into<IpAddr>,
{
    let whole = rest.split_first_chunk::<OCTETS>();
    let parts = whole.and_then(|(octets, rest)| Some((octets, rest.first_chunk::<2>()?)));
    match parts {
        Some((octets, port)) => {
            let ip: IpAddr = A::from(*octets).into();
            let port = u16::from_be_bytes(*port);
            Progress::Done(Destination::Address(SocketAddr::new(
                ip.to_canonical(),
                port,
            )))
        }
        None => Progress::Needs(4 + OCTETS + 2),
    }
}

fn named(rest: &[u8]) -> Result<Progress<Destination>, MessageError> {
    let Some((&length, rest)) = rest.split_first() else {
        return Ok(Progress::Needs(5));
    };
    let length = usize::from(length);
    let parts = rest.split_at_checked(length);
    let Some((name, port)) = parts.and_then(|(name, rest)| Some((name, rest.first_chunk::<2>()?)))
    else {
        return Ok(Progress::Needs(5 + length + 2));
    };
    let port = u16::from_be_bytes(*port);
    let name = name.strip_suffix(b".").unwrap_or(name);
    let text = std::str::from_utf8(name).map_err(|_not_text| MessageError::Name)?;
    // Some clients send an address in the form of a name.
    if let Ok(ip) = text.parse::<IpAddr>() {
        let to = SocketAddr::new(ip.to_canonical(), port);
        return Ok(Progress::Done(Destination::Address(to)));
    }
    let may_be = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > MAX_NAME || !name.iter().all(may_be) {
        return Err(MessageError::Name);
    }
    let name = text.to_ascii_lowercase();
    Ok(Progress::Done(Destination::Name(name.into(), port)))
}

#[cfg(test)]
mod tests;
