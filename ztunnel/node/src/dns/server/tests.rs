//! Tests of a server with real sockets, between an application and a resolver.

mod bounds;
mod connections;
mod datagrams;
mod leaving;
mod new_pod;
mod world;

use super::super::example::query;
use world::{header, reply, run, run_with_little_patience};
