//! A pod that gets the addresses and the link of a removed pod.

use anyhow::Result;

use super::build::{Plan, pod_link};
use super::netlink::Netlink;
use super::world::{Host, World};

const CONGESTION: &str = "cubic";

impl World {
    /// Removes a pod's link and creates a new pod with the same addresses, as in a cluster where the
    /// address of a removed pod is reused. The old pod stays, unreachable.
    ///
    /// # Errors
    /// Without root, or when the pod was replaced already.
    ///
    /// # Panics
    /// When the pod does not exist.
    pub fn replace_pod(&self, node: &str, index: u8) -> Result<Host> {
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
        let name = format!("{}-replacement", pod.name);
        let replacement = plan.host(&name, &format!("{node}-s{index}"), (pod.v4, pod.v6))?;
        plan.attach(&router.host, router.index, index, &replacement)?;
        Ok(replacement)
    }
}
