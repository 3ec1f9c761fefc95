//! The messages of SOCKS version 5 (RFC 1928), read from bytes and written as bytes.
//!
//! A reader gives what it has and is told how many bytes the message needs altogether, as far as
//! that is known yet; so nothing that follows a message is read, and no message is longer than
//! [`LONGEST`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The longest message: a request for a name of 255 bytes.
pub const LONGEST: usize = 4 + 1 + 255 + 2;

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;
/// The longest name that DNS knows (RFC 1035, 2.3.4), written without the last dot.
const LONGEST_NAME: usize = 253;

/// Where a client wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To an address.
    Address(SocketAddr),
    /// To a name, in lower case and without a last dot, on a port.
    Name(Arc<str>, u16),
}

/// How far a message has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress<T> {
    /// It needs this many bytes altogether, or more than these.
    Needs(usize),
    /// This is what it says.
    Done(T),
}

/// Why a client is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It speaks something else.
    #[error("version {0} is not SOCKS 5")]
    Version(u8),
    /// It would not do without authentication.
    #[error("the client offers no method without authentication")]
    Methods,
    /// It wants something else than a connection.
    #[error("command {0} is not CONNECT")]
    Command(u8),
    /// Its destination is of a kind that there is not.
    #[error("address type {0} is not IPv4, IPv6 or a name")]
    AddressType(u8),
    /// Its destination's name is none.
    #[error("the name is empty, too long, or has bytes that no host name has")]
    Name,
}

impl MessageError {
    /// What the client is told, as the last thing; none where it would not understand.
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
    /// The connection is there.
    Succeeded = 0,
    /// Something else.
    Failed = 1,
    /// A rule forbids it.
    NotAllowed = 2,
    /// No way to the network.
    NetworkUnreachable = 3,
    /// Nobody there, or no such name.
    HostUnreachable = 4,
    /// Somebody there, and nobody listens.
    Refused = 5,
    /// Only CONNECT is served.
    CommandNotSupported = 7,
    /// The destination is of an unknown kind.
    AddressTypeNotSupported = 8,
}

impl Reply {
    /// As it is sent. The address that the proxy calls from is nobody's concern: it is left empty.
    #[must_use]
    pub const fn message(self) -> [u8; 10] {
        [VERSION, self as u8, 0, IPV4, 0, 0, 0, 0, 0, 0]
    }
}

/// The answer to a greeting: no authentication.
pub const CHOSEN: [u8; 2] = [VERSION, NO_AUTHENTICATION];

/// Reads a greeting: the version and which methods of authentication there may be.
///
/// # Errors
/// When it is of another version, or wants authentication.
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

/// Reads a request.
///
/// # Errors
/// When it asks for what is not served. That is known, and said, as soon as the part that asks is
/// there.
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
    // Some clients send an address as a name.
    if let Ok(ip) = text.parse::<IpAddr>() {
        let to = SocketAddr::new(ip.to_canonical(), port);
        return Ok(Progress::Done(Destination::Address(to)));
    }
    let may_be = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.iter().all(may_be) {
        return Err(MessageError::Name);
    }
    let name = text.to_ascii_lowercase();
    Ok(Progress::Done(Destination::Name(name.into(), port)))
}

#[cfg(test)]
mod tests;
