//! A server with real sockets: an application on one side, a resolver on the other.

mod bounds;
mod connections;
mod datagrams;
mod leaving;
mod new_pod;
mod world;

use super::super::example::query;
use world::{header, reply, run, run_with_little_patience};
