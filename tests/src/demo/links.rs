//! What crosses the links meanwhile, read with packet sockets: the link between the nodes, and
//! the link of a pod that is called from its own node.

use std::thread;

use anyhow::Result;

use super::MARKER;
use super::page::Page;
use crate::net::World;
use crate::sniff::{Handshake, SETTLE, Seen, Sniffer, TLS_1_3};

/// The pod that is called from its own node, see [`super::story::requests`].
const CALLED_AT_HOME: (&str, usize) = ("a", 1);

/// The two links, while they are being read.
pub(super) struct Watch {
    between: Sniffer,
    within: Sniffer,
}

/// What crossed them.
pub(super) struct Crossed {
    between: Seen,
    within: Seen,
}

impl Watch {
    /// Begins to read.
    pub(super) fn begin(world: &World) -> Result<Self> {
        let (node, pod) = CALLED_AT_HOME;
        let node = world.node(node);
        Ok(Self {
            between: Sniffer::between(node, "b", MARKER.as_bytes())?,
            within: Sniffer::on_link(&node.host, &format!("pod{pod}"), MARKER.as_bytes())?,
        })
    }

    /// Ends reading.
    pub(super) fn finish(self) -> Result<Crossed> {
        thread::sleep(SETTLE);
        Ok(Crossed {
            between: self.between.finish()?,
            within: self.within.finish()?,
        })
    }
}

impl Crossed {
    fn links(&self) -> [(&'static str, &Seen); 2] {
        [
            ("node a = node b", &self.between),
            ("node a - pod a-1", &self.within),
        ]
    }

    /// Whether the marker was to be read on both links.
    pub(super) fn readable(&self) -> bool {
        self.links().iter().all(|(_, seen)| seen.hits > 0)
    }

    /// Whether the marker was not to be read between the nodes, although something crossed.
    fn hidden_between(&self) -> bool {
        self.between.hits == 0 && self.between.packets > 0
    }

    /// Whether the marker was not to be read inside the node, although something crossed.
    pub(super) fn hidden_within(&self) -> bool {
        self.within.hits == 0 && self.within.packets > 0
    }

    /// The TLS handshakes on both.
    pub(super) fn handshakes(&self) -> Vec<Handshake> {
        self.links()
            .iter()
            .flat_map(|(_, seen)| seen.handshakes.iter().copied())
            .collect()
    }

    fn rows(&self, mesh: &str) -> impl Iterator<Item = Vec<String>> {
        self.links()
            .map(|(link, seen)| {
                vec![
                    link.to_owned(),
                    mesh.to_owned(),
                    seen.packets.to_string(),
                    seen.bytes.to_string(),
                    seen.hits.to_string(),
                    seen.handshakes.len().to_string(),
                ]
            })
            .into_iter()
    }
}

/// Both links without the mesh and with it, side by side, and what must be so.
pub(super) fn show(page: &mut Page, off: &Crossed, on: &Crossed) {
    let headings = [
        "link",
        "mesh",
        "packets",
        "bytes",
        "packets with the marker in the clear",
        "TLS handshakes",
    ];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    rows.extend(off.rows("off").chain(on.rows("on")));
    page.table(&rows);
    page.claim(
        off.readable(),
        "with the mesh off, the marker of a request is to be read on each link",
    );
    page.claim(
        on.hidden_between(),
        "with the mesh on, the same marker is in no packet between the nodes",
    );
    page.claim(
        on.within.hits > 0,
        "inside node a it is: the fast path is native TCP, and its bytes do not leave the machine",
    );
    let handshakes = on.handshakes();
    page.claim(
        !handshakes.is_empty() && handshakes.iter().all(|seen| seen.version == TLS_1_3),
        "every TLS handshake on them agreed on TLS 1.3",
    );
}
