//! The steps that create a world: namespaces, links, addresses, routes, kernel settings.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::Namespace;
use super::netlink::{Netlink, Route, Via};
use super::world::{Host, Node};

/// Kernel settings of every namespace: addresses are usable at once, redirects and router discovery
/// are off, and a client has enough ports for a benchmark.
const SETTINGS: [(&str, &str); 7] = [
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv4/ip_local_port_range", "20000 65000"),
    ("net/ipv4/tcp_tw_reuse", "1"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
];
/// Kernel settings of a node, which forwards packets.
pub(super) const ROUTER: [(&str, &str); 4] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];
/// The addresses of the host outside, from the ranges for documentation.
const OUTSIDE: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(203, 0, 113, 10),
    Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x10),
);

/// The parameters that all hosts of a world share.
pub(super) struct Plan<'a> {
    pub(super) prefix: &'a str,
    pub(super) directory: &'a Path,
    pub(super) congestion: &'a str,
}

/// The name of a node's link to its pod with this index.
pub(super) fn pod_link(index: impl std::fmt::Display) -> String {
    format!("pod{index}")
}

/// The name of a node's link to the node `to`.
pub(super) fn link_to(to: &str) -> String {
    format!("to-{to}")
}

impl Plan<'_> {
    /// Creates a node and its pods.
    pub(super) fn node(&self, index: u8, name: &str, pods: u8) -> Result<Node> {
        ensure!(
            name.len() <= 8,
            "the name of node {name} is too long for a link's name"
        );
        let gateway = gateway(index);
        let mut host = self.host(name, name, gateway)?;
        host.name = name.to_owned();
        host.enter(|| settings(&ROUTER))?;
        let mut all = Vec::new();
        for pod in 0..pods {
            all.push(self.pod(&host, index, pod)?);
        }
        Ok(Node {
            host,
            pods: all,
            index,
        })
    }

    pub(super) fn host(
        &self,
        name: &str,
        suffix: &str,
        (v4, v6): (Ipv4Addr, Ipv6Addr),
    ) -> Result<Host> {
        let namespace = Namespace::create(&format!("{}-{suffix}", self.prefix))?;
        namespace.enter(|| -> Result<()> {
            settings(&SETTINGS)?;
            let mut netlink = Netlink::open()?;
            let lo = netlink.set_up("lo")?;
            self.local_routes(
                &mut netlink,
                lo,
                [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            )?;
            netlink.set_route(&self.route(Ipv4Addr::new(127, 0, 0, 0).into(), 8, Via::Local, lo))
        })?;
        Ok(Host {
            name: name.to_owned(),
            v4,
            v6,
            namespace,
            run_directory: self.directory.to_owned(),
        })
    }

    /// Sets the congestion control of routes to local addresses, over which a proxy and its application
    /// communicate. The default of the machine may differ from that of the links.
    fn local_routes(
        &self,
        netlink: &mut Netlink,
        link: u32,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<()> {
        for address in addresses {
            if address.is_ipv6() {
                netlink.remove_local(address)?;
            }
            netlink.set_route(&self.route(address, bits(address), Via::Local, link))?;
        }
        Ok(())
    }

    fn route(&self, to: IpAddr, prefix: u8, via: Via, link: u32) -> Route<'_> {
        Route {
            to,
            prefix,
            via,
            link,
            congestion: self.congestion,
        }
    }

    fn pod(&self, node: &Host, node_index: u8, index: u8) -> Result<Host> {
        let number = 10 + index;
        let addresses = (
            Ipv4Addr::new(10, 42, node_index, number),
            Ipv6Addr::new(
                0xfd42,
                0,
                0,
                u16::from(node_index),
                0,
                0,
                0,
                u16::from(number),
            ),
        );
        let pod = self.host(
            &format!("{}-{index}", node.name),
            &format!("{}-p{index}", node.name),
            addresses,
        )?;
        self.attach(node, node_index, index, &pod)?;
        Ok(pod)
    }

    /// Connects a pod to its node.
    pub(super) fn attach(&self, node: &Host, node_index: u8, index: u8, pod: &Host) -> Result<()> {
        self.stub(node, &pod_link(index), gateway(node_index), pod, "eth0")
    }

    /// Connects a host to a router: the router has routes to the host's addresses, and the host has a
    /// default route to the router.
    pub(super) fn stub(
        &self,
        router: &Host,
        outer: &str,
        gateway: (Ipv4Addr, Ipv6Addr),
        host: &Host,
        inner: &str,
    ) -> Result<()> {
        let addresses: [IpAddr; 2] = [host.v4.into(), host.v6.into()];
        let gateways: [IpAddr; 2] = [gateway.0.into(), gateway.1.into()];
        router.enter(|| -> Result<()> {
            let mut netlink = Netlink::open()?;
            netlink.add_veth(outer, inner, &host.namespace)?;
            let link = netlink.set_up(outer)?;
            for gateway in gateways {
                netlink.add_address(link, gateway, bits(gateway))?;
            }
            Ok(())
        })?;
        host.enter(|| -> Result<()> {
            let mut netlink = Netlink::open()?;
            let link = netlink.set_up(inner)?;
            for (address, gateway) in addresses.into_iter().zip(gateways) {
                netlink.add_address(link, address, bits(address))?;
                let any = unspecified(address);
                netlink.set_route(&self.route(any, 0, Via::Gateway(gateway), link))?;
            }
            self.local_routes(&mut netlink, link, addresses)
        })?;
        router.enter(|| -> Result<()> {
            let mut netlink = Netlink::open()?;
            let link = super::netlink::index_of(outer)?;
            for address in addresses {
                netlink.set_route(&self.route(address, bits(address), Via::Link, link))?;
            }
            Ok(())
        })
    }

    /// Connects each pair of nodes.
    pub(super) fn connect(&self, nodes: &mut [Node]) -> Result<()> {
        for left in 0..nodes.len() {
            for right in left + 1..nodes.len() {
                self.pair(&nodes[left], &nodes[right])?;
            }
        }
        let count = nodes.len();
        for node in nodes.iter_mut().filter(|_| count > 1) {
            // The address on the first link, which leads to the other node with the lowest index.
            let other = u8::from(node.index == 0);
            (node.host.v4, node.host.v6) = underlay(node.index, other);
        }
        Ok(())
    }

    fn pair(&self, left: &Node, right: &Node) -> Result<()> {
        left.host.enter(|| {
            Netlink::open()?.add_veth(
                &link_to(right.name()),
                &link_to(left.name()),
                &right.host.namespace,
            )
        })?;
        self.configure_end(left, right)?;
        self.configure_end(right, left)
    }

    fn configure_end(&self, node: &Node, peer: &Node) -> Result<()> {
        let (own, peer_addresses) = (
            underlay(node.index, peer.index),
            underlay(peer.index, node.index),
        );
        node.host.enter(|| -> Result<()> {
            let mut netlink = Netlink::open()?;
            let link = netlink.set_up(&link_to(peer.name()))?;
            netlink.add_address(link, own.0.into(), 24)?;
            netlink.add_address(link, own.1.into(), 64)?;
            let pods = pod_network(peer.index);
            netlink.set_route(&self.route(
                pods.0,
                24,
                Via::Gateway(peer_addresses.0.into()),
                link,
            ))?;
            netlink.set_route(&self.route(pods.1, 64, Via::Gateway(peer_addresses.1.into()), link))
        })
    }

    /// Creates the host outside and connects it to every node.
    pub(super) fn outside(&self, nodes: &[Node]) -> Result<Host> {
        let host = self.host("outside", "outside", OUTSIDE)?;
        host.enter(|| -> Result<()> {
            let mut netlink = Netlink::open()?;
            let lo = super::netlink::index_of("lo")?;
            netlink.add_address(lo, OUTSIDE.0.into(), 32)?;
            netlink.add_address(lo, OUTSIDE.1.into(), 128)
        })?;
        for node in nodes {
            self.attach_outside(node, &host)?;
        }
        Ok(host)
    }

    fn attach_outside(&self, node: &Node, outside: &Host) -> Result<()> {
        let inner = format!("node{}", node.index);
        let (near, far) = (outside_link(node.index, 1), outside_link(node.index, 2));
        node.host.enter(|| -> Result<()> {
            let mut netlink = Netlink::open()?;
            netlink.add_veth("outside", &inner, &outside.namespace)?;
            let link = netlink.set_up("outside")?;
            netlink.add_address(link, near.0.into(), 24)?;
            netlink.add_address(link, near.1.into(), 64)
        })?;
        outside.enter(|| -> Result<()> {
            let mut netlink = Netlink::open()?;
            let link = netlink.set_up(&inner)?;
            netlink.add_address(link, far.0.into(), 24)?;
            netlink.add_address(link, far.1.into(), 64)?;
            let pods = pod_network(node.index);
            netlink.set_route(&self.route(pods.0, 24, Via::Gateway(near.0.into()), link))?;
            netlink.set_route(&self.route(pods.1, 64, Via::Gateway(near.1.into()), link))
        })?;
        node.host.enter(|| -> Result<()> {
            let mut netlink = Netlink::open()?;
            let link = super::netlink::index_of("outside")?;
            let (v4, v6) = OUTSIDE;
            netlink.set_route(&self.route(v4.into(), 32, Via::Gateway(far.0.into()), link))?;
            netlink.set_route(&self.route(v6.into(), 128, Via::Gateway(far.1.into()), link))
        })
    }
}

pub(super) fn settings(values: &[(&str, &str)]) -> Result<()> {
    for (key, value) in values {
        // /proc/sys/net belongs to the network namespace of the thread that opens it.
        fs::write(format!("/proc/sys/{key}"), value)
            .with_context(|| format!("setting {key} to {value}"))?;
    }
    Ok(())
}

fn gateway(node: u8) -> (Ipv4Addr, Ipv6Addr) {
    (
        Ipv4Addr::new(10, 42, node, 1),
        Ipv6Addr::new(0xfd42, 0, 0, u16::from(node), 0, 0, 0, 1),
    )
}

fn pod_network(node: u8) -> (IpAddr, IpAddr) {
    (
        Ipv4Addr::new(10, 42, node, 0).into(),
        Ipv6Addr::new(0xfd42, 0, 0, u16::from(node), 0, 0, 0, 0).into(),
    )
}

/// The address of node `node` on its link to node `peer`.
fn underlay(node: u8, peer: u8) -> (Ipv4Addr, Ipv6Addr) {
    let link = node.min(peer) * 16 + node.max(peer);
    (
        Ipv4Addr::new(10, 41, link, 1 + node),
        Ipv6Addr::new(0xfd41, 0, 0, u16::from(link), 0, 0, 0, 1 + u16::from(node)),
    )
}

fn outside_link(node: u8, side: u8) -> (Ipv4Addr, Ipv6Addr) {
    (
        Ipv4Addr::new(10, 43, node, side),
        Ipv6Addr::new(0xfd43, 0, 0, u16::from(node), 0, 0, 0, u16::from(side)),
    )
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
