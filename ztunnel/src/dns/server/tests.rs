//! A server with real sockets: an application on one side, a resolver on the other.

mod bounds;
mod connections;
mod datagrams;
mod world;

use world::{header, query, reply, run, run_with_little_patience};
