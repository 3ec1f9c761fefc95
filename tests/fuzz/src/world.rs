//! Names and addresses from small sets, so that the parts of an input refer to each other.

use std::net::{IpAddr, SocketAddr};

use arbitrary::{Arbitrary, Result, Unstructured};
use mesh::Identity;

use crate::naive::Caller;

/// Namespaces, service accounts and the like.
pub const NAMES: [&str; 4] = ["a", "b", "default", "aa"];

/// An element of a slice.
///
/// # Errors
/// When the input has ended.
pub fn one_of<T: Copy>(input: &mut Unstructured<'_>, of: &[T]) -> Result<T> {
    input.choose(of).copied()
}

/// One of seven addresses.
///
/// # Errors
/// When the input has ended.
///
/// # Panics
/// Never: each of them parses.
pub fn address(input: &mut Unstructured<'_>) -> Result<IpAddr> {
    let all = [
        "10.0.0.1",
        "10.0.0.2",
        "10.1.0.1",
        "192.0.2.1",
        "fd00::1",
        "::1",
        "fd00::2",
    ];
    Ok(one_of(input, &all)?.parse().unwrap())
}

impl<'a> Arbitrary<'a> for Caller {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        let identity = if input.arbitrary()? {
            let (namespace, account) = (one_of(input, &NAMES)?, one_of(input, &NAMES)?);
            Identity::new("td", namespace, account).ok()
        } else {
            None
        };
        Ok(Self {
            identity,
            source: address(input)?,
            destination: SocketAddr::new(address(input)?, one_of(input, &[80, 81, 15008])?),
        })
    }
}
