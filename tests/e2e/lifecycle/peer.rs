//! A scripted tunnel peer: certificates of any authority, TLS with any settings, and arbitrary
//! HTTP/2 frames.

mod certificate;
mod frames;
mod server;
mod tls;

pub(crate) use certificate::{Authority, Leaf};
pub(crate) use frames::{CODES, Kind, Reply, Tunnels, connect, frame, header, literal};
pub(crate) use server::Scripted;
pub(crate) use tls::{Secure, client, client_config, dial, serve_once};
