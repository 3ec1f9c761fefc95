//! The requests of the demonstration, and what became of each.

use std::net::SocketAddr;

use super::PORT;
use super::log::Line;
use super::text::columns;
use crate::net::{Family, Host, World};
use crate::proxy::Mesh;
use crate::sniff::Seen;
use crate::traffic::Answer;

/// What to look for on the link; part of every request.
pub(super) const MARKER: &str = "marker-that-must-not-cross-in-the-clear";
/// What all identities of the demonstration begin with.
const TRUST_DOMAIN: &str = "spiffe://cluster.local/";

/// A request to make.
pub(super) struct Request<'world> {
    pub(super) client: &'world Host,
    /// Whom it calls, in words.
    pub(super) called: String,
    pub(super) to: SocketAddr,
}

/// Requests by pod address and by service address, in both families and directions, and one
/// that leaves the mesh.
pub(super) fn requests(world: &World) -> Vec<Request<'_>> {
    let mut requests = Vec::new();
    for (client, server) in [
        (world.pod("a", 0), world.pod("b", 0)),
        (world.pod("b", 0), world.pod("a", 1)),
    ] {
        for family in Family::BOTH {
            requests.push(Request {
                client,
                called: format!("pod {}", server.name),
                to: server.at(family, PORT),
            });
            requests.push(Request {
                client,
                called: format!("service {}", server.name),
                to: Mesh::service(server).at(family, 80),
            });
        }
    }
    let outside = world.outside();
    requests.push(Request {
        client: world.pod("a", 0),
        called: "a host outside".to_owned(),
        to: outside.at(Family::V4, PORT),
    });
    requests
}

/// What became of a request.
#[derive(Debug)]
pub(super) struct Story {
    caller: String,
    called: String,
    to: SocketAddr,
    captured: &'static str,
    lane: &'static str,
    client: SocketAddr,
    /// Where the tunnel led to.
    tunnel: Option<SocketAddr>,
    client_identity: String,
    server_identity: String,
    seen_source: SocketAddr,
    first_ms: f64,
    again_ms: f64,
}

impl Story {
    pub(super) fn new(
        request: &Request<'_>,
        first: &Answer,
        again: &Answer,
        line: Option<Line>,
    ) -> Self {
        let field = |name: &str| {
            let text = line
                .as_ref()
                .and_then(|line| line.field(name))
                .unwrap_or("-");
            text.trim_start_matches(TRUST_DOMAIN).to_owned()
        };
        let tunnelled = line
            .as_ref()
            .is_some_and(|line| line.field("dst.hbone_addr").is_some());
        let captured = match (&line, request.to) {
            (None, _) => "no",
            (Some(_), SocketAddr::V4(_)) => "eBPF connect4",
            (Some(_), SocketAddr::V6(_)) => "eBPF connect6",
        };
        let lane = match (&line, tunnelled) {
            (None, _) => "direct",
            (Some(_), true) => "tunnel",
            (Some(_), false) => "passthrough",
        };
        Self {
            caller: request.client.name.clone(),
            called: request.called.clone(),
            to: request.to,
            captured,
            lane,
            client: again.client_local,
            tunnel: tunnelled.then(|| field("dst.addr").parse().ok()).flatten(),
            client_identity: field("src.identity"),
            server_identity: field("dst.identity"),
            seen_source: again.peer,
            first_ms: first.latency.as_secs_f64() * 1e3,
            again_ms: again.latency.as_secs_f64() * 1e3,
        }
    }

    /// The TLS version of the tunnel, as the link showed it.
    fn tls(&self, seen: &Seen) -> String {
        let Some(tunnel) = self.tunnel else {
            return "-".to_owned();
        };
        seen.handshakes
            .iter()
            .find(|handshake| {
                handshake.server == tunnel && handshake.client.ip() == self.client.ip()
            })
            .map_or_else(
                || "not seen".to_owned(),
                |handshake| {
                    format!(
                        "{}, {}, {}",
                        handshake.version_name().trim_start_matches("TLS "),
                        handshake.cipher_name(),
                        handshake.group_name()
                    )
                },
            )
    }

    fn source(&self) -> String {
        if self.seen_source.ip() == self.client.ip() {
            format!("{} (the pod's own)", self.seen_source.ip())
        } else {
            format!("{} (NOT the pod's)", self.seen_source.ip())
        }
    }
}

/// All stories as a table.
pub(super) fn table(stories: &[Story], seen: &Seen) -> String {
    let mut lines = vec![
        [
            "caller",
            "called",
            "address",
            "captured by",
            "lane",
            "TLS on the link",
            "client",
            "server",
            "source the server saw",
            "first",
            "again",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for story in stories {
        lines.push(vec![
            story.caller.clone(),
            story.called.clone(),
            story.to.to_string(),
            story.captured.to_owned(),
            story.lane.to_owned(),
            story.tls(seen),
            story.client_identity.clone(),
            story.server_identity.clone(),
            story.source(),
            format!("{:.1} ms", story.first_ms),
            format!("{:.1} ms", story.again_ms),
        ]);
    }
    format!(
        "{}client and server: identities below {TRUST_DOMAIN}",
        columns(&lines)
    )
}
