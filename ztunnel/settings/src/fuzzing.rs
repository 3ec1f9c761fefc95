//! The door for the fuzz targets: settings from texts, without a file system.

use std::path::Path;

use super::{ConfigError, Environment, Overrides, Settings, layers};

/// As [`super::load_from`], with the text of the settings file, and one text for whatever file it
/// or the environment names.
///
/// # Errors
/// As [`super::load_from`].
pub fn settings(
    text: &str,
    environment: &Environment,
    named: &str,
) -> Result<Settings, ConfigError> {
    let file = mesh::yaml::read(text).map_err(|source| ConfigError::Yaml {
        path: Path::new("settings.yaml").to_owned(),
        source,
    })?;
    let read = |_: &Path| Ok(named.to_owned());
    layers::assemble(file, environment, &Overrides::default(), read)
}
