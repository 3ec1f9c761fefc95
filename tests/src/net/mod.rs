//! Simulated nodes on one machine: network namespaces, links, addresses and routes.
//!
//! Everything is made over netlink and two mounts; no program such as `ip` is run, but for
//! [`Rules`]. A
//! [`World`] owns what it made and takes it away again when it is dropped. Tests and the
//! benchmark start here: build a world, then [`Host::enter`] a pod.

mod build;
mod namespace;
mod nested;
mod netlink;
mod rules;
mod successor;
mod table;
mod world;

pub use namespace::Namespace;
pub(crate) use namespace::{DIRECTORY as NAMESPACES, remove as remove_namespace};
pub(crate) use netlink::index_of;
pub use rules::Rules;
pub use table::{TcpSocket, TcpState, remote_end, tcp_sockets};
pub use world::{Family, Host, Node, World, WorldBuilder};
