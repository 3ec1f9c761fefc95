//! A network namespace behind a pod, as a privileged pod could create it: the pod forwards its packets,
//! and the node routes its addresses to the pod.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::build::{Plan, ROUTER, pod_link, settings};
use super::netlink::{Netlink, Route, Via, index_of};
use super::world::{Family, Host, World};

/// The last part of a nested host's addresses, plus the index of the pod.
const NESTED: u8 = 200;
const CONGESTION: &str = "cubic";

impl World {
    /// Creates a host behind a pod of a node.
    ///
    /// # Errors
    /// Without root, or when the pod has a nested host already.
    ///
    /// # Panics
    /// When the pod does not exist.
    pub fn nested_host(&self, node: &str, index: u8) -> Result<Host> {
        let pod = self.pod(node, usize::from(index));
        let router = self.node(node);
        let number = NESTED + index;
        let [a, b, c, _] = pod.v4.octets();
        let v4 = Ipv4Addr::new(a, b, c, number);
        let mut segments = pod.v6.segments();
        segments[7] = u16::from(number);
        let v6 = Ipv6Addr::from(segments);
        let plan = Plan {
            prefix: self.prefix(),
            directory: self.directory(),
            congestion: CONGESTION,
        };
        let name = format!("{}-nested", pod.name);
        let nested_host = plan.host(&name, &format!("{node}-n{index}"), (v4, v6))?;
        let gateway = (
            Ipv4Addr::new(10, 44, c, 1 + index),
            Ipv6Addr::new(0xfd44, 0, 0, u16::from(c), 0, 0, 0, 1 + u16::from(index)),
        );
        plan.stub(pod, "nested", gateway, &nested_host, "eth0")?;
        pod.enter(|| settings(&ROUTER))?;
        router.host.enter(|| -> Result<()> {
            let link = index_of(&pod_link(index))?;
            let mut netlink = Netlink::open()?;
            for family in Family::BOTH {
                netlink.set_route(&Route {
                    to: nested_host.address(family),
                    prefix: if family == Family::V4 { 32 } else { 128 },
                    via: Via::Gateway(pod.address(family)),
                    link,
                    congestion: CONGESTION,
                })?;
            }
            Ok(())
        })?;
        Ok(nested_host)
    }
}
