//! The settings of a running node: read again when their files change.

use std::path::PathBuf;

use super::node::Node;
use super::{assembly, capture};
use settings::{Overrides, Settings, Watcher};

/// Where the settings come from, to read them again.
pub(super) struct SettingsSource {
    pub(super) file: Option<PathBuf>,
    pub(super) overrides: Overrides,
}

impl Node {
    /// Watches the settings files; none where there is no file or the system refuses.
    pub(super) fn watch_settings(&self) -> Option<Watcher> {
        let files = self.settings_files();
        if files.is_empty() {
            return None;
        }
        Watcher::new(&files)
            .inspect_err(|error| {
                tracing::error!(
                    %error,
                    "cannot watch the settings files: changes go unnoticed until a restart"
                );
            })
            .ok()
    }

    /// The files that the settings come from.
    pub(super) fn settings_files(&self) -> Vec<PathBuf> {
        [&self.source.file, &self.settings.mesh_file]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Reads the settings again. If the file is invalid, the last good settings stay in force.
    pub(super) fn reload(&mut self) {
        match settings::load(self.source.file.as_deref(), &self.source.overrides) {
            Ok(settings) => {
                let changed = assembly::fixed_keys_that_differ(&self.settings, &settings);
                for key in &changed {
                    tracing::warn!(key, "this setting changes only with a restart");
                }
                if changed
                    .iter()
                    .any(|key| assembly::IDENTIFYING.contains(key))
                {
                    tracing::error!(
                        "the new settings are another node's; the last good ones stay in force"
                    );
                } else if settings != self.settings {
                    self.apply_settings(settings);
                    tracing::info!("settings loaded anew");
                }
            }
            Err(error) => {
                tracing::error!(
                    %error,
                    "cannot load the settings; the last good ones stay in force"
                );
            }
        }
        self.enroll();
    }

    fn apply_settings(&mut self, settings: Settings) {
        for warning in &settings.warnings {
            tracing::warn!("{warning}");
        }
        if self.shared.kernel.is_none() {
            capture::warn_of_exemptions(&settings);
        }
        self.mesh.apply_local(&settings.local_mesh);
        self.settings = settings;
        self.reauthorize();
        self.drop_stale_metrics();
        if self.handover_state.is_active()
            && let Some(kernel) = &self.shared.kernel
            && let Err(error) = kernel.set_exemptions(&assembly::exemptions(&self.settings))
        {
            tracing::error!(
                %error,
                "cannot write the exemptions from capture; the previous ones stay in force"
            );
        }
    }
}
