//! The tunnels that carried the requests, as three witnesses describe each: the proxy that
//! opened it, the proxy that accepted it, and a packet socket that saw its handshake.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use super::log::{self, Line};
use super::page::Page;
use crate::net::World;
use crate::proxy::{Mesh, identity};
use crate::sniff::Handshake;

/// Logs are written in batches.
const PATIENCE: Duration = Duration::from_secs(5);

/// What one end of a connection between proxies says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Testimony {
    client: SocketAddr,
    server: SocketAddr,
    client_identity: String,
    server_identity: String,
    version: String,
    cipher: String,
    key_exchange: String,
}

impl Testimony {
    fn read(line: &Line) -> Option<Self> {
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

    /// Whether a handshake on the wire agreed on the same: names differ in their spelling.
    fn agrees(&self, seen: &Handshake) -> bool {
        let cipher = seen.cipher_name().replace('-', "_").to_uppercase();
        seen.version_name().replace("TLS ", "TLSv") == self.version
            && self.cipher.contains(&cipher)
            && seen.group_name().eq_ignore_ascii_case(&self.key_exchange)
    }

    fn same_terms(&self, other: &Self) -> bool {
        self.version == other.version
            && self.cipher == other.cipher
            && self.key_exchange == other.key_exchange
            && self.client_identity == other.client_identity
            && self.server_identity == other.server_identity
    }
}

/// All connections between the same two ends: every worker thread has one of its own.
#[derive(Debug)]
pub(super) struct Tunnel {
    /// For example `T1`.
    pub(super) name: String,
    opened: Vec<Testimony>,
    /// What the accepting ends say, in the same order.
    accepted: Vec<Option<Testimony>>,
}

impl Tunnel {
    /// The calling address and the address where it ends.
    pub(super) fn key(&self) -> (IpAddr, SocketAddr) {
        let first = &self.opened[0];
        (first.client.ip(), first.server)
    }

    fn confirmed(&self) -> bool {
        let mut pairs = self.opened.iter().zip(&self.accepted);
        let uniform = self
            .opened
            .iter()
            .all(|one| one.same_terms(&self.opened[0]));
        uniform && pairs.all(|(opened, accepted)| accepted.as_ref() == Some(opened))
    }
}

/// All tunnels so far, from both proxies' logs.
pub(super) fn gather(mesh: &mut Mesh<'_>) -> Vec<Tunnel> {
    let started = Instant::now();
    loop {
        let (mut opened, mut accepted) = (Vec::new(), Vec::new());
        for line in mesh.proxies().iter().flat_map(|proxy| log::tunnels(proxy)) {
            let side = if line.says("direction", "outbound") {
                &mut opened
            } else {
                &mut accepted
            };
            side.extend(Testimony::read(&line));
        }
        let tunnels = group(opened, &accepted);
        let complete = tunnels
            .iter()
            .all(|tunnel| tunnel.accepted.iter().all(Option::is_some));
        if complete || started.elapsed() > PATIENCE {
            return tunnels;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn group(opened: Vec<Testimony>, accepted: &[Testimony]) -> Vec<Tunnel> {
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

/// Each tunnel in two lines: who, and how.
pub(super) fn show(page: &Page, tunnels: &[Tunnel]) {
    for tunnel in tunnels {
        let Testimony {
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

/// What must be so for every tunnel. `handshakes` are those that crossed the links.
pub(super) fn check(page: &mut Page, world: &World, tunnels: &[Tunnel], handshakes: &[Handshake]) {
    page.claim(
        !tunnels.is_empty() && tunnels.iter().all(Tunnel::confirmed),
        "both ends of each tunnel log the same TLS version, cipher, key exchange and identities",
    );
    let all = || tunnels.iter().flat_map(|tunnel| &tunnel.opened);
    let named = |one: &Testimony| {
        owner(world, one.client.ip()) == Some(one.client_identity.clone())
            && owner(world, one.server.ip()) == Some(one.server_identity.clone())
    };
    page.claim(
        all().all(named),
        "each identity is the one of the pod at that address",
    );
    let witnessed = |one: &Testimony| {
        handshakes
            .iter()
            .any(|seen| (seen.client, seen.server) == (one.client, one.server) && one.agrees(seen))
    };
    page.claim(
        all().all(witnessed),
        "the ServerHello of each, read from a link on its way, says the same version and cipher",
    );
    page.claim(
        all().all(|one| one.version == "TLSv1.3"),
        "every one of them is TLS 1.3",
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

    fn testimony(client: &str, cipher: &str) -> Testimony {
        Testimony::read(&line(client, cipher)).unwrap()
    }

    #[test]
    fn connections_between_the_same_ends_are_one_tunnel() {
        let (one, two) = (
            testimony("10.0.0.1:1000", "TLS13_AES_128_GCM_SHA256"),
            testimony("10.0.0.1:1001", "TLS13_AES_128_GCM_SHA256"),
        );
        let both = [two.clone(), one.clone()];
        let tunnels = group(vec![one.clone(), two.clone()], &both);
        assert_eq!(tunnels.len(), 1);
        assert!(tunnels[0].confirmed());
        assert!(!group(vec![one.clone(), two], &[one])[0].confirmed());
    }

    #[test]
    fn ends_that_disagree_do_not_confirm() {
        let one = testimony("10.0.0.1:1000", "TLS13_AES_128_GCM_SHA256");
        let other = testimony("10.0.0.1:1000", "TLS13_AES_256_GCM_SHA384");
        assert!(!group(vec![one], &[other])[0].confirmed());
    }

    #[test]
    fn a_handshake_is_compared_by_meaning() {
        let seen = Handshake {
            client: "10.0.0.1:1000".parse().unwrap(),
            server: "10.0.0.2:15008".parse().unwrap(),
            version: 0x0304,
            cipher: 0x1301,
            group: Some(0x11ec),
        };
        assert!(testimony("10.0.0.1:1000", "TLS_AES_128_GCM_SHA256").agrees(&seen));
        assert!(!testimony("10.0.0.1:1000", "TLS_AES_256_GCM_SHA384").agrees(&seen));
    }
}
