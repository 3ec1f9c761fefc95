//! The sections of `/config_dump`. The sections of the mesh, the certificates and the connections have
//! the shape that `istioctl ztunnel-config` reads; the others are specific to this proxy.

mod certificates;
mod connections;
mod resources;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::bpf::StoredEntry;
use crate::proxy::ProxyState;
use admin::Dump;
use mesh::NetnsCookie;
use mesh::fastpath::{FastPathConnection, InboundEntry};
use settings::Settings;

/// A section whose content is read on each request.
struct Section<F> {
    name: &'static str,
    read: F,
}

impl<F: Fn() -> Value + Send + Sync> Dump for Section<F> {
    fn section(&self) -> &'static str {
        self.name
    }

    fn dump(&self) -> Value {
        (self.read)()
    }
}

fn section(
    name: &'static str,
    shared: &Arc<ProxyState>,
    read: impl Fn(&ProxyState) -> Value + Send + Sync + 'static,
) -> Arc<dyn Dump> {
    let shared = shared.clone();
    Arc::new(Section {
        name,
        read: move || read(&shared),
    })
}

/// The most fast-path entries and connections that are listed; the counts include all.
const LISTED_MAX: usize = 1000;

/// The fast path: its entries and the connections that the kernel carries.
fn fast_path_section(shared: &ProxyState) -> Value {
    let Some(kernel) = &shared.kernel else {
        return Value::Null;
    };
    let view = shared.fast_path.view();
    let name = |cookie: NetnsCookie| {
        let uid = view.pod(cookie).map(|pod| &*pod.uid.0);
        uid.map_or_else(|| json!(cookie.0), |uid| json!(uid))
    };
    let mut entries = kernel.entries().unwrap_or_default();
    entries.retain(|stored| !stored.is_retired);
    let inbound_entries = kernel.inbound_entries().unwrap_or_default();
    let connections = kernel.fast_path_connections().unwrap_or_default();
    let entry_json = |StoredEntry { key, entry, .. }: &StoredEntry| {
        let backends = entry.backends.iter().map(|backend| backend.to.to_string());
        json!({
            "pod": name(key.pod),
            "dials": key.destination.to_string(),
            "backends": backends.collect::<Vec<_>>(),
        })
    };
    let inbound_entry_json = |entry: &InboundEntry| {
        json!({
            "pod": name(entry.pod),
            "at": entry.to.to_string(),
            "from": entry.from.to_string(),
        })
    };
    let connection_json = |connection: &FastPathConnection| {
        json!({
            "pod": name(connection.pod),
            "client": connection.client.to_string(),
            "server": connection.server.to_string(),
            "dialled": connection.dialled.to_string(),
        })
    };
    json!({
        "counts": {
            "calls": entries.len(),
            "arrivals": inbound_entries.len(),
            "connections": connections.len(),
            "lostEvents": kernel.lost_events(),
        },
        "calls": entries.iter().take(LISTED_MAX).map(entry_json).collect::<Vec<_>>(),
        "arrivals": inbound_entries.iter().take(LISTED_MAX).map(inbound_entry_json).collect::<Vec<_>>(),
        "connections": connections.iter().take(LISTED_MAX).map(connection_json).collect::<Vec<_>>(),
    })
}

/// The node's pods with their connections, on the tunnel path and on the fast path.
fn workload_state(shared: &ProxyState) -> Value {
    let kernel = shared.kernel.as_ref();
    let mut fast_path_connections = kernel
        .and_then(|kernel| kernel.fast_path_connections().ok())
        .unwrap_or_default();
    fast_path_connections.truncate(LISTED_MAX);
    connections::workload_state(
        &shared.fast_path.view(),
        &shared.connection_table.carried(),
        &fast_path_connections,
    )
}

/// All sections: the current mesh, the certificates without their keys, the connections, the fast
/// path, and the settings that the process was started with.
pub(super) fn all(shared: &Arc<ProxyState>, settings: &Settings) -> Vec<Arc<dyn Dump>> {
    let config = serde_json::to_value(settings).unwrap_or_default();
    vec![
        section("workloads", shared, |shared| {
            resources::workloads(&shared.fast_path.view().mesh)
        }),
        section("services", shared, |shared| {
            resources::services(&shared.fast_path.view().mesh)
        }),
        section("policies", shared, |shared| {
            resources::policies(&shared.fast_path.view().mesh)
        }),
        section("certificates", shared, |shared| {
            certificates::certificates(&shared.certificates.inventory())
        }),
        section("workloadState", shared, workload_state),
        section("direct", shared, fast_path_section),
        section("config", shared, move |_shared| config.clone()),
    ]
}

#[cfg(test)]
mod tests;
