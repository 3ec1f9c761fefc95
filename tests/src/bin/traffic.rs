//! The load generator as a program: one server or one client, results as JSON on standard
//! output. It runs in whatever network namespace it is started in, also on the host itself,
//! where it can be compared with other generators.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use ztunnel_tests::cleanup;
use ztunnel_tests::traffic::bulk::{self, Direction};
use ztunnel_tests::traffic::{self, Manner, connects, http_load, idle, pingpong, tune};

/// Servers and clients that measure.
#[derive(Parser)]
struct Arguments {
    /// Run on this CPU only.
    #[arg(long, global = true)]
    cpu: Option<usize>,
    /// How bulk and ping-pong wait, and the servers `echo`, `sink` and `source`.
    #[arg(long, global = true, default_value = "blocking")]
    manner: Manner,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until killed. Prints {"port":N} when it listens.
    Serve {
        /// What to do with each connection.
        kind: traffic::Kind,
        /// Where to listen.
        #[arg(long, default_value = "[::]:0")]
        listen: SocketAddr,
    },
    /// A bulk transfer, to `serve sink`, or with --reverse from `serve source`.
    Bulk {
        #[command(flatten)]
        load: Load,
        /// From the server to the client.
        #[arg(long)]
        reverse: bool,
        /// Bytes of one write.
        #[arg(long, default_value_t = traffic::BULK_BYTES)]
        chunk: usize,
    },
    /// Requests over keep-alive connections, to `serve http`.
    Http(Load),
    /// A connection for each request, to `serve http`; --connections of them at a time.
    Connect(Load),
    /// One byte there and back, to `serve echo`.
    Pingpong(Load),
    /// Holds idle connections to `serve http` until standard input ends.
    Idle(Load),
}

#[derive(Parser)]
struct Load {
    /// The server's address.
    #[arg(long)]
    to: SocketAddr,
    /// Connections side by side.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// How long.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
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
    let manner = arguments.manner;
    let report = match &arguments.command {
        Command::Serve { kind, listen } => {
            let server = traffic::serve_as(*kind, *listen, manner)?;
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
                manner,
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
            serde_json::to_value(pingpong::run(load.to, load.length(), manner)?)
        }
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
