//! The proxy: the life of one connection.
//!
//! An application in a pod calls `connect()`. The kernel programs redirect the connection to the
//! proxy's listener inside the pod. These modules handle it from there:
//!
//! 1. `accept`: a worker accepts the connection. A `Connection` then holds its client, its original
//!    destination and its pod, to its end.
//! 2. `outbound::decide` calls [`route`](mesh::route::route), a pure function of the connection and
//!    a [`View`](mesh::View). It selects the path: a tunnel (to the destination's node, its waypoint,
//!    or the gateway of its network), a plain connection to a pod of this node, or passthrough. If
//!    the function lacks an input, `decide` obtains it: [`Resolve`] resolves host names, `inputs`
//!    requests resources from the control plane ([`OnDemandClient`](crate::discovery::OnDemandClient))
//!    and waits until it has pushed the workload of a new pod.
//! 3. [`authorize`](mesh::authorize::authorize): at the destination, a pure function returns the
//!    verdict and the rule behind it.
//! 4. `tunnel_client` opens an HBONE tunnel, `inbound::tunnel_server` terminates one of a peer,
//!    `passthrough` handles connections without a tunnel. [`FastPath`](crate::fastpath::FastPath)
//!    lets the kernel carry later connections of the same kind.
//! 5. `relay`: moves and counts the bytes.
//! 6. `report`: one report per connection feeds the metrics and the access log.
//!
//! `names` connects the DNS proxy with the pods, where DNS is captured.
//!
//! `outbound` and `inbound` run these steps for the two directions. All work for one connection
//! runs on one [`worker`](Workers) thread. The module uses snapshots and a certificate source and
//! does not depend on their origin.

mod accept;
mod authorized;
mod connection;
pub(crate) mod connection_info;
mod connection_table;
mod connections;
mod far_end;
mod inbound;
mod inputs;
mod names;
mod outbound;
mod passthrough;
mod pod_context;
mod policy;
pub mod proxy_protocol;
mod recheck;
mod refusal;
pub(crate) mod relay;
pub(crate) mod report;
mod resolve;
pub mod socks5;
mod state;
mod tunnel_client;
mod wait;
mod worker;
mod worker_state;

pub use connection::ConnectionId;
pub use connection_table::{Carried, ConnectionTable};
pub use recheck::RecheckQueue;
pub use resolve::{Resolve, ResolveError, Resolving, SystemResolver};
pub use state::{Config, ProxyState};
pub use wait::WorkloadWaits;
pub use worker::{WorkerError, Workers};
