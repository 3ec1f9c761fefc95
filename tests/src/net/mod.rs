//! Simulated nodes on one machine: network namespaces, links, addresses and routes.
//!
//! A world is created with netlink and mounts. Only [`Rules`] runs programs such as `ip`. A [`World`]
//! owns its resources and removes them when it is dropped. Tests and the benchmark build a world and
//! then [`Host::enter`] a pod.

mod build;
mod namespace;
mod nested_host;
mod netlink;
mod replacement_pod;
mod rules;
mod socket_table;
mod world;

pub use namespace::Namespace;
pub(crate) use namespace::{DIRECTORY as NAMESPACES, remove as remove_namespace};
pub(crate) use netlink::index_of;
pub use rules::Rules;
pub use socket_table::{FarEnd, TcpSocket, TcpState, far_end, tcp_sockets};
pub use world::{Family, Host, Node, World, WorldBuilder};
