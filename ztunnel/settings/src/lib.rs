//! Settings: flags go before the environment, the environment before the file, the file before
//! the defaults.
//!
//! [`load`] turns all of it into one [`Settings`], checked as a whole: a value that cannot be is
//! refused with its key, and nothing is half applied. Only `environment` reads the process's
//! environment. `node` calls [`load`] at the start and again whenever [`Watcher`] says that a
//! file changed, and turns the sections into the rooms' own configurations. Every key is listed
//! in SETTINGS.md, which [`reference`] generates.

mod capture;
mod check;
mod environment;
mod error;
mod file;
mod lanes;
mod layers;
pub mod reference;
mod settings;
mod units;
mod upstream;
mod watch;

use std::path::Path;

pub use self::capture::CaptureBy;
pub use self::environment::Environment;
pub use self::error::ConfigError;
pub use self::lanes::{Acceleration, LaneOverride, SameNode};
pub use self::layers::Overrides;
pub use self::settings::{
    Capture, Dns, Hbone, Keepalive, Log, LogFormat, Mode, NodeAgent, Pod, Settings,
};
pub use self::units::{Bytes, ParseUnitError};
pub use self::upstream::{
    Authority, Headers, Instance, LocalAuthority, RemoteAuthority, Upstream, Xds,
};
pub use self::watch::{WatchError, Watcher};

/// Reads the settings: `path` is the settings file, if there is one.
///
/// # Errors
/// When a file cannot be read, a value is not what its key expects, or the values contradict each
/// other.
pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Settings, ConfigError> {
    load_from(path, &Environment::of_process()?, overrides)
}

/// As [`load`], with an environment that was read before.
///
/// # Errors
/// As [`load`].
pub fn load_from(
    path: Option<&Path>,
    environment: &Environment,
    overrides: &Overrides,
) -> Result<Settings, ConfigError> {
    let text = path.map(read).transpose()?.unwrap_or_default();
    let file = SettingsFile {
        path: path.unwrap_or(Path::new("")),
        text: &text,
    };
    from_text(file, environment, overrides, read)
}

/// A settings file that was read before.
#[derive(Debug, Clone, Copy)]
pub struct SettingsFile<'a> {
    /// Its path, for error messages.
    pub path: &'a Path,
    /// Its content.
    pub text: &'a str,
}

/// As [`load_from`], without a file system: `read_file` returns the content of a file that the
/// settings name.
///
/// # Errors
/// As [`load`], and those of `read_file`.
pub fn from_text(
    file: SettingsFile<'_>,
    environment: &Environment,
    overrides: &Overrides,
    read_file: impl Fn(&Path) -> Result<String, ConfigError>,
) -> Result<Settings, ConfigError> {
    let sections = mesh::yaml::read(file.text).map_err(|source| ConfigError::Yaml {
        path: file.path.to_owned(),
        source,
    })?;
    layers::assemble(sections, environment, overrides, read_file)
}

/// A file this long is no settings file; it would only fill the memory.
const MAX_FILE: u64 = 64 << 20;

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_FILE {
        return Err(ConfigError::TooLong {
            path: path.to_owned(),
            length,
            most: MAX_FILE,
        });
    }
    std::fs::read_to_string(path).map_err(failed)
}

#[cfg(test)]
mod tests;
