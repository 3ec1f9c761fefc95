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
#[cfg(fuzzing)]
pub mod fuzzing;
mod lanes;
mod layers;
pub mod reference;
mod settings;
mod units;
mod upstream;
mod watch;

use std::path::{Path, PathBuf};

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
    let file = mesh::yaml::read(&text).map_err(|source| ConfigError::Yaml {
        path: path.map(PathBuf::from).unwrap_or_default(),
        source,
    })?;
    layers::assemble(file, environment, overrides, read)
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
