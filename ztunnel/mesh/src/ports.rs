//! The ports of the proxy inside a pod, as Istio's ambient mode assigns them.

/// Receives the connections that the pod's applications open.
pub const OUTBOUND_PORT: u16 = 15001;

/// Receives plaintext connections to the pod.
pub const INBOUND_PORT: u16 = 15006;

/// Receives HBONE tunnels; the same port at every workload of the mesh.
pub const HBONE_PORT: u16 = 15008;

/// The ports that belong to the proxy. No application is reachable there.
pub const PROXY_PORTS: [u16; 3] = [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT];
