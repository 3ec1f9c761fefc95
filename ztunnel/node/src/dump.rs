//! What `/config_dump` shows of this node. What Istio's own command reads of it has the shape that
//! it expects (`mesh`, `certificates`, `connections`); other sections are ours.

mod certificates;
mod connections;
mod resources;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::proxy::ProxyState;
use admin::Dump;
use mesh::NetnsCookie;
use mesh::fastpath::{FastPathConnection, FastPathEntry, FastPathKey, InboundEntry};
use settings::Settings;

/// A section that is read when somebody asks.
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

/// How many entries of the direct lane are shown; its counts are of all of them.
const SHOWN: usize = 1000;

/// What the kernel carries by itself, and may.
fn fast_path_section(shared: &ProxyState) -> Value {
    let Some(kernel) = &shared.kernel else {
        return Value::Null;
    };
    let view = shared.fast_path.view();
    let name = |cookie: NetnsCookie| {
        let uid = view.pod(cookie).map(|pod| &*pod.uid.0);
        uid.map_or_else(|| json!(cookie.0), |uid| json!(uid))
    };
    let entries = kernel.entries().unwrap_or_default();
    let inbound_entries = kernel.inbound_entries().unwrap_or_default();
    let fast_path_connections = kernel.fast_path_connections().unwrap_or_default();
    let call = |(call, verdict): &(FastPathKey, FastPathEntry)| {
        let backends = verdict
            .backends
            .iter()
            .map(|backend| backend.to.to_string());
        json!({
            "pod": name(call.pod),
            "dials": call.destination.to_string(),
            "backends": backends.collect::<Vec<_>>(),
        })
    };
    let arrival = |arrival: &InboundEntry| {
        json!({
            "pod": name(arrival.pod),
            "at": arrival.to.to_string(),
            "from": arrival.from.to_string(),
        })
    };
    let flow = |flow: &FastPathConnection| {
        json!({
            "pod": name(flow.pod),
            "client": flow.client.to_string(),
            "server": flow.server.to_string(),
            "dialled": flow.dialled.to_string(),
        })
    };
    json!({
        "counts": {
            "calls": entries.len(),
            "arrivals": inbound_entries.len(),
            "connections": fast_path_connections.len(),
            "lostEvents": kernel.lost_events(),
        },
        "calls": entries.iter().take(SHOWN).map(call).collect::<Vec<_>>(),
        "arrivals": inbound_entries.iter().take(SHOWN).map(arrival).collect::<Vec<_>>(),
        "connections": fast_path_connections.iter().take(SHOWN).map(flow).collect::<Vec<_>>(),
    })
}

/// The pods here, with what the proxy carries of them and the kernel.
fn workload_state(shared: &ProxyState) -> Value {
    let kernel = shared.kernel.as_ref();
    let mut fast_path_connections = kernel
        .and_then(|kernel| kernel.fast_path_connections().ok())
        .unwrap_or_default();
    fast_path_connections.truncate(SHOWN);
    connections::workload_state(
        &shared.fast_path.view(),
        &shared.connection_table.carried(),
        &fast_path_connections,
    )
}

/// The sections: the mesh as it is now, the certificates without their keys, the connections, what
/// the kernel carries by itself, and the settings the process was started with.
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
