//! The tunnels of the requests, from three sources: the log of the proxy that opened the tunnel, the log
//! of the proxy that accepted it, and the captured TLS handshake.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use super::log::{self, Line};
use super::page::Page;
use crate::net::World;
use crate::proxy::{Mesh, identity};
use crate::sniff::Handshake;

/// The time limit for the log lines of tunnels: logs are written in batches.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A connection between proxies in the log of one end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TunnelRecord {
    client: SocketAddr,
    server: SocketAddr,
    client_identity: String,
    server_identity: String,
    version: String,
    cipher: String,
    key_exchange: String,
}

impl TunnelRecord {
    fn parse(line: &Line) -> Option<Self> {
        let text = |name: &str| line.field(name).map(str::to_owned);
        Some(Self {
            client: line.field("src.addr")?.parse().ok()?,
            server: line.field("dst.addr")?.parse().ok()?,
            client_identity: text("src.identity")?,
            server_identity: text("dst.identity")?,
            version: text("tls.version")?,
            cipher: text("tls.cipher_suite")?,
            key_exchange: text("tls.key_exchange")?,
        })
    }

    /// Whether a captured handshake has the same parameters. The names are spelled differently.
    fn matches(&self, handshake: &Handshake) -> bool {
        let cipher = handshake.cipher_name().replace('-', "_").to_uppercase();
        handshake.version_name().replace("TLS ", "TLSv") == self.version
            && self.cipher.contains(&cipher)
            && handshake
                .group_name()
                .eq_ignore_ascii_case(&self.key_exchange)
    }

    fn has_same_parameters(&self, other: &Self) -> bool {
        self.version == other.version
            && self.cipher == other.cipher
            && self.key_exchange == other.key_exchange
            && self.client_identity == other.client_identity
            && self.server_identity == other.server_identity
    }
}

/// All connections between the same two ends; each worker thread opens its own.
#[derive(Debug)]
pub(super) struct Tunnel {
    /// For example `T1`.
    pub(super) name: String,
    opened: Vec<TunnelRecord>,
    /// The records of the accepting ends, in the same order.
    accepted: Vec<Option<TunnelRecord>>,
}

impl Tunnel {
    /// The client's address and the address where the tunnel ends.
    pub(super) fn key(&self) -> (IpAddr, SocketAddr) {
        let first = &self.opened[0];
        (first.client.ip(), first.server)
    }

    fn is_consistent(&self) -> bool {
        let mut pairs = self.opened.iter().zip(&self.accepted);
        let uniform = self
            .opened
            .iter()
            .all(|one| one.has_same_parameters(&self.opened[0]));
        uniform && pairs.all(|(opened, accepted)| accepted.as_ref() == Some(opened))
    }
}

/// All tunnels so far, from the logs of both proxies.
pub(super) fn collect(mesh: &mut Mesh<'_>) -> Vec<Tunnel> {
    let started = Instant::now();
    loop {
        let (mut opened, mut accepted) = (Vec::new(), Vec::new());
        for line in mesh.proxies().iter().flat_map(|proxy| log::tunnels(proxy)) {
            let side = if line.has("direction", "outbound") {
                &mut opened
            } else {
                &mut accepted
            };
            side.extend(TunnelRecord::parse(&line));
        }
        let tunnels = group(opened, &accepted);
        let complete = tunnels
            .iter()
            .all(|tunnel| tunnel.accepted.iter().all(Option::is_some));
        if complete || started.elapsed() > TIMEOUT {
            return tunnels;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn group(opened: Vec<TunnelRecord>, accepted: &[TunnelRecord]) -> Vec<Tunnel> {
    let mut tunnels: Vec<Tunnel> = Vec::new();
    for one in opened {
        let other = accepted
            .iter()
            .find(|other| (other.client, other.server) == (one.client, one.server))
            .cloned();
        let key = (one.client.ip(), one.server);
        if let Some(tunnel) = tunnels.iter_mut().find(|tunnel| tunnel.key() == key) {
            tunnel.opened.push(one);
            tunnel.accepted.push(other);
        } else {
            tunnels.push(Tunnel {
                name: format!("T{}", tunnels.len() + 1),
                opened: vec![one],
                accepted: vec![other],
            });
        }
    }
    tunnels
}

/// Prints each tunnel in two lines: identities, and addresses with TLS parameters.
pub(super) fn show(page: &Page, tunnels: &[Tunnel]) {
    for tunnel in tunnels {
        let TunnelRecord {
            client,
            server,
            client_identity,
            server_identity,
            version,
            cipher,
            key_exchange,
        } = &tunnel.opened[0];
        page.text(&format!(
            "{:3} {client_identity}  ->  {server_identity}\n    {} -> {server}   {version}   {cipher}   {key_exchange}",
            tunnel.name,
            client.ip(),
        ));
    }
}

/// Checks the claims about all tunnels. `handshakes` are the captured ones.
pub(super) fn check(page: &mut Page, world: &World, tunnels: &[Tunnel], handshakes: &[Handshake]) {
    page.claim(
        !tunnels.is_empty() && tunnels.iter().all(Tunnel::is_consistent),
        "both ends of each tunnel log the same TLS version, cipher suite, key exchange and identities",
    );
    let all = || tunnels.iter().flat_map(|tunnel| &tunnel.opened);
    let has_identity_of_pod = |one: &TunnelRecord| {
        owner(world, one.client.ip()) == Some(one.client_identity.clone())
            && owner(world, one.server.ip()) == Some(one.server_identity.clone())
    };
    page.claim(
        all().all(has_identity_of_pod),
        "each identity is that of the pod with this address",
    );
    let was_captured = |one: &TunnelRecord| {
        handshakes.iter().any(|handshake| {
            (handshake.client, handshake.server) == (one.client, one.server)
                && one.matches(handshake)
        })
    };
    page.claim(
        all().all(was_captured),
        "the captured ServerHello of each tunnel has the same version, cipher suite and key exchange",
    );
    page.claim(
        all().all(|one| one.version == "TLSv1.3"),
        "every tunnel uses TLS 1.3",
    );
}

/// The identity of the pod at an address.
fn owner(world: &World, address: IpAddr) -> Option<String> {
    let mut pods = world.nodes().iter().flat_map(|node| &node.pods);
    pods.find(|pod| IpAddr::from(pod.v4) == address || IpAddr::from(pod.v6) == address)
        .map(identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(client: &str, cipher: &str) -> Line {
        Line::of(json!({
            "src.addr": client, "dst.addr": "10.0.0.2:15008",
            "src.identity": "spiffe://td/ns/n/sa/a", "dst.identity": "spiffe://td/ns/n/sa/b",
            "tls.version": "TLSv1.3", "tls.cipher_suite": cipher,
            "tls.key_exchange": "X25519MLKEM768",
        }))
    }

    fn record(client: &str, cipher: &str) -> TunnelRecord {
        TunnelRecord::parse(&line(client, cipher)).unwrap()
    }

    #[test]
    fn connections_between_the_same_ends_are_one_tunnel() {
        let (one, two) = (
            record("10.0.0.1:1000", "TLS13_AES_128_GCM_SHA256"),
            record("10.0.0.1:1001", "TLS13_AES_128_GCM_SHA256"),
        );
        let both = [two.clone(), one.clone()];
        let tunnels = group(vec![one.clone(), two.clone()], &both);
        assert_eq!(tunnels.len(), 1);
        assert!(tunnels[0].is_consistent());
        assert!(!group(vec![one.clone(), two], &[one])[0].is_consistent());
    }

    #[test]
    fn ends_with_different_records_are_inconsistent() {
        let one = record("10.0.0.1:1000", "TLS13_AES_128_GCM_SHA256");
        let other = record("10.0.0.1:1000", "TLS13_AES_256_GCM_SHA384");
        assert!(!group(vec![one], &[other])[0].is_consistent());
    }

    #[test]
    fn a_handshake_is_compared_with_the_spelling_of_the_log() {
        let handshake = Handshake {
            client: "10.0.0.1:1000".parse().unwrap(),
            server: "10.0.0.2:15008".parse().unwrap(),
            version: 0x0304,
            cipher: 0x1301,
            group: Some(0x11ec),
        };
        assert!(record("10.0.0.1:1000", "TLS_AES_128_GCM_SHA256").matches(&handshake));
        assert!(!record("10.0.0.1:1000", "TLS_AES_256_GCM_SHA384").matches(&handshake));
    }
}
