//! What `/config_dump` shows of this node. What Istio's own command reads of it has the shape that
//! it expects (`mesh`, `certificates`, `connections`); other sections are ours.

mod certificates;
mod connections;
mod resources;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::proxy::Shared;
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
    shared: &Arc<Shared>,
    read: impl Fn(&Shared) -> Value + Send + Sync + 'static,
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
fn direct_lane(shared: &Shared) -> Value {
    let Some(kernel) = &shared.kernel else {
        return Value::Null;
    };
    let view = shared.keeper.view();
    let name = |cookie: NetnsCookie| {
        let uid = view.pod(cookie).map(|pod| &*pod.uid.0);
        uid.map_or_else(|| json!(cookie.0), |uid| json!(uid))
    };
    let calls = kernel.calls().unwrap_or_default();
    let arrivals = kernel.arrivals().unwrap_or_default();
    let flows = kernel.flows().unwrap_or_default();
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
            "calls": calls.len(),
            "arrivals": arrivals.len(),
            "connections": flows.len(),
            "lostEvents": kernel.lost_events(),
        },
        "calls": calls.iter().take(SHOWN).map(call).collect::<Vec<_>>(),
        "arrivals": arrivals.iter().take(SHOWN).map(arrival).collect::<Vec<_>>(),
        "connections": flows.iter().take(SHOWN).map(flow).collect::<Vec<_>>(),
    })
}

/// The pods here, with what the proxy carries of them and the kernel.
fn workload_state(shared: &Shared) -> Value {
    let kernel = shared.kernel.as_ref();
    let mut flows = kernel
        .and_then(|kernel| kernel.flows().ok())
        .unwrap_or_default();
    flows.truncate(SHOWN);
    connections::workload_state(&shared.keeper.view(), &shared.ledger.carried(), &flows)
}

/// The sections: the mesh as it is now, the certificates without their keys, the connections, what
/// the kernel carries by itself, and the settings the process was started with.
pub(super) fn all(shared: &Arc<Shared>, settings: &Settings) -> Vec<Arc<dyn Dump>> {
    let config = serde_json::to_value(settings).unwrap_or_default();
    vec![
        section("workloads", shared, |shared| {
            resources::workloads(&shared.keeper.view().mesh)
        }),
        section("services", shared, |shared| {
            resources::services(&shared.keeper.view().mesh)
        }),
        section("policies", shared, |shared| {
            resources::policies(&shared.keeper.view().mesh)
        }),
        section("certificates", shared, |shared| {
            certificates::certificates(&shared.certificates.inventory())
        }),
        section("workloadState", shared, workload_state),
        section("direct", shared, direct_lane),
        section("config", shared, move |_shared| config.clone()),
    ]
}

#[cfg(test)]
mod tests;
