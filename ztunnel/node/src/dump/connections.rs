//! The pods that are served here and what they have open, in the shape that
//! `istioctl ztunnel-config connections` reads: what the proxy carries, and what the kernel carries
//! by itself.

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
    // A pod that has left while connections of it are still open.
    let mut of = |uid: &Uid, inbound: bool, connection: ConnectionView| {
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
        of(&each.pod, each.inbound, ConnectionView::carried(each));
    }
    // What the proxy opened on the direct lane is among what it carries.
    for flow in fast_path_connections
        .iter()
        .filter(|flow| flow.opener != Opener::Proxy)
    {
        let outside = flow.opener == Opener::Outside;
        let client = (!outside).then_some(flow.pod);
        let server = if outside {
            Some(flow.pod)
        } else {
            flow.server_pod
        };
        for (end, inbound) in [(client, false), (server, true)] {
            if let Some(pod) = end.and_then(|cookie| view.pod(cookie)) {
                of(&pod.uid, inbound, ConnectionView::direct(flow));
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

/// Who it is. Of a pod that the mesh does not know, its uid is all that is known.
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
    src: String,
    /// What the client dialled, or asked for by the tunnel's authority.
    original_dst: String,
    /// Where it was sent, or delivered.
    actual_dst: String,
    protocol: &'static str,
    // Ours: whether the kernel carries it without the proxy.
    direct: bool,
}

impl ConnectionView {
    fn carried(carried: &Carried) -> Self {
        Self {
            src: carried.client.to_string(),
            original_dst: carried.dialled.clone(),
            actual_dst: carried.to.to_string(),
            protocol: if carried.tunnelled { "HBONE" } else { "TCP" },
            direct: false,
        }
    }

    fn direct(flow: &FastPathConnection) -> Self {
        Self {
            src: flow.client.to_string(),
            original_dst: flow.dialled.to_string(),
            actual_dst: flow.server.to_string(),
            protocol: "TCP",
            direct: true,
        }
    }
}
