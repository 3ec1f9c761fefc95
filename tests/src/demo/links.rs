//! The traffic on two links, captured with packet sockets: the link between the nodes, and the link of a
//! pod that receives requests from its own node.

use std::thread;

use anyhow::Result;

use super::MARKER;
use super::page::Page;
use crate::net::World;
use crate::sniff::{Handshake, SETTLE, SniffedTraffic, Sniffer, TLS_1_3};

/// The pod that receives requests from its own node, see [`super::requests::requests`].
const SAME_NODE_SERVER: (&str, usize) = ("a", 1);

/// A running capture of both links.
pub(super) struct LinkCapture {
    between_nodes: Sniffer,
    inside_node: Sniffer,
}

/// The captured traffic of both links.
pub(super) struct LinkTraffic {
    between_nodes: SniffedTraffic,
    inside_node: SniffedTraffic,
}

impl LinkCapture {
    /// Starts the capture.
    pub(super) fn start(world: &World) -> Result<Self> {
        let (node, pod) = SAME_NODE_SERVER;
        let node = world.node(node);
        Ok(Self {
            between_nodes: Sniffer::between(node, "b", MARKER.as_bytes())?,
            inside_node: Sniffer::on_link(&node.host, &format!("pod{pod}"), MARKER.as_bytes())?,
        })
    }

    /// Stops the capture.
    pub(super) fn finish(self) -> Result<LinkTraffic> {
        thread::sleep(SETTLE);
        Ok(LinkTraffic {
            between_nodes: self.between_nodes.finish()?,
            inside_node: self.inside_node.finish()?,
        })
    }
}

impl LinkTraffic {
    fn links(&self) -> [(&'static str, &SniffedTraffic); 2] {
        [
            ("node a = node b", &self.between_nodes),
            ("node a - pod a-1", &self.inside_node),
        ]
    }

    /// Whether packets on both links contain the marker.
    pub(super) fn readable(&self) -> bool {
        self.links()
            .iter()
            .all(|(_, traffic)| traffic.marker_packets > 0)
    }

    /// Whether packets crossed the link between the nodes, and none contains the marker.
    fn hidden_between_nodes(&self) -> bool {
        self.between_nodes.marker_packets == 0 && self.between_nodes.packets > 0
    }

    /// Whether packets crossed the link inside the node, and none contains the marker.
    pub(super) fn hidden_inside_node(&self) -> bool {
        self.inside_node.marker_packets == 0 && self.inside_node.packets > 0
    }

    /// The TLS handshakes on both links.
    pub(super) fn handshakes(&self) -> Vec<Handshake> {
        self.links()
            .iter()
            .flat_map(|(_, traffic)| traffic.handshakes.iter().copied())
            .collect()
    }

    fn rows(&self, mesh: &str) -> impl Iterator<Item = Vec<String>> {
        self.links()
            .map(|(link, traffic)| {
                vec![
                    link.to_owned(),
                    mesh.to_owned(),
                    traffic.packets.to_string(),
                    traffic.bytes.to_string(),
                    traffic.marker_packets.to_string(),
                    traffic.handshakes.len().to_string(),
                ]
            })
            .into_iter()
    }
}

/// Prints the traffic of both links without and with the mesh, and checks the claims about it.
pub(super) fn show(page: &mut Page, off: &LinkTraffic, on: &LinkTraffic) {
    let headings = [
        "link",
        "mesh",
        "packets",
        "bytes",
        "packets with the marker",
        "TLS handshakes",
    ];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    rows.extend(off.rows("off").chain(on.rows("on")));
    page.table(&rows);
    page.claim(
        off.readable(),
        "with the mesh off, packets on each link contain the marker of the requests",
    );
    page.claim(
        on.hidden_between_nodes(),
        "with the mesh on, no packet between the nodes contains the marker",
    );
    page.claim(
        on.inside_node.marker_packets > 0,
        "inside node a packets contain it: the fast path is native TCP that does not leave the node",
    );
    let handshakes = on.handshakes();
    page.claim(
        !handshakes.is_empty()
            && handshakes
                .iter()
                .all(|handshake| handshake.version == TLS_1_3),
        "every TLS handshake on the links negotiated TLS 1.3",
    );
}
