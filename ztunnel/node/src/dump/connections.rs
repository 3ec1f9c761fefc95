//! The node's pods and their open connections, in the shape that `istioctl ztunnel-config connections`
//! reads: connections that the proxy carries, and connections of the fast path.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use crate::proxy::Carried;
use mesh::View;
use mesh::fastpath::{FastPathConnection, Opener};
use mesh::{Snapshot, Uid};

/// The key `workloadState`: by the workload's uid.
pub(super) fn workload_state(
    view: &View,
    carried: &[Carried],
    fast_path_connections: &[FastPathConnection],
) -> Value {
    let mut pods = BTreeMap::new();
    for pod in view.pods() {
        pods.insert(pod.uid.clone(), PodView::new("Up", &pod.uid, &view.mesh));
    }
    let mut add = |uid: &Uid, inbound: bool, connection: ConnectionView| {
        // A pod that has left may still have open connections.
        let pod = pods
            .entry(uid.clone())
            .or_insert_with(|| PodView::new("Draining", uid, &view.mesh));
        if inbound {
            pod.connections.inbound.push(connection);
        } else {
            pod.connections.outbound.push(connection);
        }
    };
    for each in carried {
        add(&each.pod, each.inbound, ConnectionView::carried(each));
    }
    // Fast-path connections that the proxy opened are part of the carried ones.
    for connection in fast_path_connections
        .iter()
        .filter(|connection| connection.opener != Opener::Proxy)
    {
        let outside = connection.opener == Opener::Outside;
        let client = (!outside).then_some(connection.pod);
        let server = if outside {
            Some(connection.pod)
        } else {
            connection.server_pod
        };
        for (end, inbound) in [(client, false), (server, true)] {
            if let Some(pod) = end.and_then(|cookie| view.pod(cookie)) {
                add(&pod.uid, inbound, ConnectionView::direct(connection));
            }
        }
    }
    json!(pods)
}

#[derive(Serialize)]
struct PodView {
    state: &'static str,
    connections: ConnectionsView,
    info: InfoView,
}

#[derive(Default, Serialize)]
struct ConnectionsView {
    inbound: Vec<ConnectionView>,
    outbound: Vec<ConnectionView>,
}

/// The names of a pod's workload. If the mesh does not know the workload, only its uid is known.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InfoView {
    name: String,
    namespace: String,
    trust_domain: String,
    service_account: String,
}

impl PodView {
    fn new(state: &'static str, uid: &Uid, mesh: &Snapshot) -> Self {
        let known = mesh.workload_by_uid(uid);
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        Self {
            state,
            connections: ConnectionsView::default(),
            info: InfoView {
                name: known.map_or_else(|| uid.to_string(), |known| known.name.to_string()),
                namespace: text(known.map(|known| &*known.namespace)),
                trust_domain: text(known.map(|known| &*known.trust_domain)),
                service_account: text(known.map(|known| &*known.service_account)),
            },
        }
    }
}

/// One connection; the ends are `address:port`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionView {
    // A key of this proxy: the number of a connection that the proxy carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    src: String,
    /// The destination that the client dialled, or the authority of the tunnel's request.
    original_dst: String,
    /// The address that the connection was sent or delivered to.
    actual_dst: String,
    protocol: &'static str,
    // A key of this proxy: whether the kernel carries the connection (fast path).
    direct: bool,
}

impl ConnectionView {
    fn carried(carried: &Carried) -> Self {
        Self {
            id: Some(carried.id.0),
            src: carried.client.to_string(),
            original_dst: carried.dialled.clone(),
            actual_dst: carried.to.to_string(),
            protocol: if carried.tunnelled { "HBONE" } else { "TCP" },
            direct: false,
        }
    }

    fn direct(connection: &FastPathConnection) -> Self {
        Self {
            id: None,
            src: connection.client.to_string(),
            original_dst: connection.dialled.to_string(),
            actual_dst: connection.server.to_string(),
            protocol: "TCP",
            direct: true,
        }
    }
}
