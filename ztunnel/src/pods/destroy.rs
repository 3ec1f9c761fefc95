//! Stand-in until the real one is merged.
use std::net::SocketAddr;
use std::num::NonZeroU64;
#[derive(Debug, Clone, Copy)]
pub struct Connection {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub cookie: Option<NonZeroU64>,
}
#[derive(Debug)]
pub enum Outcome {
    Destroyed,
    Gone,
    Failed(std::io::Error),
}
#[derive(Debug)]
pub struct Destroyed {
    pub outcomes: Vec<Outcome>,
}
pub fn destroy(_connections: &[Connection]) -> std::io::Result<Destroyed> {
    Err(std::io::Error::other("not yet"))
}
