//! A pod that takes over the place of another one: its address, and its link to the node.

use anyhow::Result;

use super::build::{Plan, pod_link};
use super::netlink::Netlink;
use super::world::{Host, World};

const CONGESTION: &str = "cubic";

impl World {
    /// Takes a pod's link away and gives a new pod its addresses, as a node does when a pod has
    /// ended and its address is handed out again. The old pod goes on to exist, unreachable.
    ///
    /// # Errors
    /// Without root, or when the pod has a successor already.
    ///
    /// # Panics
    /// When there is no such pod.
    pub fn successor(&self, node: &str, index: u8) -> Result<Host> {
        let pod = self.pod(node, usize::from(index));
        let router = self.node(node);
        router
            .host
            .enter(|| Netlink::open()?.remove_link(&pod_link(index)))?;
        let plan = Plan {
            prefix: self.prefix(),
            directory: self.directory(),
            congestion: CONGESTION,
        };
        let name = format!("{}-successor", pod.name);
        let successor = plan.host(&name, &format!("{node}-s{index}"), (pod.v4, pod.v6))?;
        plan.attach(&router.host, router.index, index, &successor)?;
        Ok(successor)
    }
}
