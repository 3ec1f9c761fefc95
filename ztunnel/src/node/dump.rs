//! What `/config_dump` shows of this node.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::admin::Dump;
use crate::config::Settings;
use crate::path::Shared;

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

/// The sections: the mesh as it is now, the certificates without their keys, and the settings
/// the process was started with.
pub(super) fn all(shared: &Arc<Shared>, settings: &Settings) -> Vec<Arc<dyn Dump>> {
    let config = serde_json::to_value(settings).unwrap_or_default();
    vec![
        section("workloads", shared, |shared| {
            json!(
                shared
                    .keeper
                    .view()
                    .mesh
                    .workloads()
                    .map(|object| &**object)
                    .collect::<Vec<_>>()
            )
        }),
        section("services", shared, |shared| {
            json!(
                shared
                    .keeper
                    .view()
                    .mesh
                    .services()
                    .map(|object| &**object)
                    .collect::<Vec<_>>()
            )
        }),
        section("policies", shared, |shared| {
            json!(
                shared
                    .keeper
                    .view()
                    .mesh
                    .policies()
                    .map(|object| &**object)
                    .collect::<Vec<_>>()
            )
        }),
        section("certificates", shared, |shared| {
            json!(shared.certificates.inventory())
        }),
        section("config", shared, move |_shared| config.clone()),
    ]
}
