//! Tests of a server with real sockets, between an application and a resolver.

mod connections;
mod datagrams;
mod limits;
mod new_pod;
mod shutdown;
mod world;

use std::io;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::net::{TcpStream, UdpSocket};

use super::super::example::query;
use super::super::wire;
use super::limits::{
    ERROR_DELAY, MAX_DATAGRAM_QUERY, MAX_POD_CONNECTIONS, MAX_POD_QUERIES, MAX_WORKER_CONNECTIONS,
    MAX_WORKER_QUERIES,
};
use telemetry::DnsRefusal;
use world::{expect_server_failure, header, reply, run, run_with_short_timeout};
