//! The load generator program: one server or one client, with its results as JSON on standard output.
//! It runs in the network namespace in which it is started. On the host it can be compared with other
//! load generators.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use ztunnel_tests::cleanup;
use ztunnel_tests::traffic::bulk::{self, Direction};
use ztunnel_tests::traffic::{self, IoMode, calls, connects, http_load, idle, pingpong, tune};

/// Servers, and clients that measure.
#[derive(Parser)]
struct Arguments {
    /// Run on this CPU only.
    #[arg(long, global = true)]
    cpu: Option<usize>,
    /// The I/O mode of `bulk`, `pingpong`, and the servers `echo`, `sink` and `source`.
    #[arg(long, global = true, default_value = "blocking")]
    io_mode: IoMode,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until killed. Prints {"port":N} when it listens.
    Serve {
        /// The behaviour of the server.
        kind: traffic::Kind,
        /// The address to listen on.
        #[arg(long, default_value = "[::]:0")]
        listen: SocketAddr,
    },
    /// A bulk transfer to `serve sink`, or with --reverse from `serve source`.
    Bulk {
        #[command(flatten)]
        load: Load,
        /// From the server to the client.
        #[arg(long)]
        reverse: bool,
        /// The size of one write, in bytes.
        #[arg(long, default_value_t = traffic::BULK_BYTES)]
        chunk: usize,
    },
    /// Requests over keep-alive connections, to `serve http`.
    Http(Load),
    /// A new connection for each request to `serve http`, --connections of them at a time.
    Connect(Load),
    /// Round trips of one byte with `serve echo`.
    Pingpong(Load),
    /// Calls of a service by its name, with every failure counted.
    Calls(Calls),
    /// Reads the greeting of a server that sends first.
    Greet {
        /// NAME:PORT of the server.
        to: String,
    },
    /// Holds idle connections to `serve http` until standard input ends.
    Idle(Load),
}

#[derive(Parser)]
struct Load {
    /// The server's address.
    #[arg(long)]
    to: SocketAddr,
    /// The number of concurrent connections.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// The duration, in seconds.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

#[derive(Parser)]
struct Calls {
    /// NAME:PORT of an HTTP server.
    to: String,
    /// One connection for each caller instead of one for each call.
    #[arg(long)]
    keep: bool,
    /// The number of concurrent callers.
    #[arg(long, default_value_t = 1)]
    callers: usize,
    /// The duration, in seconds.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// The largest number of calls.
    #[arg(long, default_value_t = u64::MAX)]
    most: u64,
    /// The pause of each caller between two calls, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// Fail if a call failed.
    #[arg(long)]
    strict: bool,
}

impl Calls {
    fn run(&self) -> Result<calls::Report> {
        let report = calls::run(&calls::Plan {
            to: self.to.clone(),
            connections: if self.keep {
                calls::Connections::Kept
            } else {
                calls::Connections::New
            },
            callers: self.callers,
            length: Duration::from_secs_f64(self.seconds),
            most: self.most,
            pause: Duration::from_millis(self.pause),
        })?;
        anyhow::ensure!(!self.strict || report.failed == 0, "{report:?}");
        Ok(report)
    }
}

/// Reads the first byte of a server that sends first.
fn greet(to: &str) -> Result<()> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
    let read = stream.read_exact(&mut [0]);
    read.context("reading the greeting")?;
    print(&serde_json::json!({ "greeted": true }))
}

impl Load {
    fn length(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

fn main() -> ExitCode {
    cleanup::exit(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    tune::raise_file_limit()?;
    if let Some(cpu) = arguments.cpu {
        tune::pin(cpu)?;
    }
    let io_mode = arguments.io_mode;
    let report = match &arguments.command {
        Command::Serve { kind, listen } => {
            let server = traffic::serve_as(*kind, *listen, io_mode)?;
            print(&serde_json::json!({ "port": server.port() }))?;
            server.run_forever();
            return Ok(());
        }
        Command::Bulk {
            load,
            reverse,
            chunk,
        } => {
            let direction = if *reverse {
                Direction::Reverse
            } else {
                Direction::Forward
            };
            let plan = bulk::Plan {
                to: load.to,
                connections: load.connections,
                length: load.length(),
                direction,
                chunk: *chunk,
                io_mode,
            };
            serde_json::to_value(bulk::run(&plan)?)
        }
        Command::Http(load) => {
            serde_json::to_value(http_load::run(load.to, load.connections, load.length())?)
        }
        Command::Connect(load) => {
            serde_json::to_value(connects::run(load.to, load.connections, load.length())?)
        }
        Command::Pingpong(load) => {
            serde_json::to_value(pingpong::run(load.to, load.length(), io_mode)?)
        }
        Command::Calls(calls) => serde_json::to_value(calls.run()?),
        Command::Greet { to } => return greet(to),
        Command::Idle(load) => {
            let held = idle::open(load.to, load.connections)?;
            print(&serde_json::json!({ "open": held.len() }))?;
            let mut rest = Vec::new();
            std::io::stdin()
                .read_to_end(&mut rest)
                .context("waiting on standard input")?;
            return Ok(());
        }
    };
    print(&report.context("writing the report")?)
}

fn print(value: &serde_json::Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")
        .and_then(|()| out.flush())
        .context("writing to standard output")
}
