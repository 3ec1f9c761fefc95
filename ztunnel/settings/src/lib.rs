//! Settings: flags take precedence over the environment, the environment over the file, the file
//! over the defaults.
//!
//! [`load`] merges all layers into one [`Settings`] and checks it as a whole: an invalid value is
//! an error that names its key, and nothing is applied in part. Only `environment` reads the
//! process's environment. `node` calls [`load`] at the start and whenever [`Watcher`] reports a
//! changed file, and passes the sections on to the other crates. Every key is listed in
//! docs/settings.md, which [`reference`] generates.

mod capture;
mod check;
mod environment;
mod error;
mod fast_path;
mod file;
mod flags;
mod layers;
pub mod reference;
mod settings;
mod units;
mod upstream;
mod watch;

use std::path::{Path, PathBuf};

pub use self::capture::{Capture, CaptureBy};
pub use self::environment::Environment;
pub use self::error::ConfigError;
pub use self::fast_path::{Acceleration, PathOverride, SameNode};
pub use self::flags::Overrides;
pub use self::settings::{Dns, Hbone, Keepalive, Log, LogFormat, Mode, NodeAgent, Pod, Settings};
pub use self::units::{Bytes, ParseUnitError};
pub use self::upstream::{
    Authority, Headers, Instance, LocalAuthority, RemoteAuthority, Upstream, Xds,
};
pub use self::watch::{WatchError, Watcher};

/// Reads the settings; `path` is the settings file, if one is used.
///
/// # Errors
/// If a file cannot be read, a value is invalid, or values contradict each other.
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
        path: path.unwrap_or_else(|| Path::new("")),
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

/// Larger files are refused, so that a wrong path does not exhaust the memory.
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

/// The directory of the pinned kernel objects that a settings file names, or its default. It needs
/// no other setting, so that `kernel remove` works where a proxy could not start.
///
/// # Errors
/// If the file cannot be read or is not a settings file.
pub fn bpf_directory(path: Option<&Path>) -> Result<PathBuf, ConfigError> {
    let text = path.map(read).transpose()?.unwrap_or_default();
    let file: file::File = mesh::yaml::read(&text).map_err(|source| ConfigError::Yaml {
        path: path.unwrap_or_else(|| Path::new("")).to_owned(),
        source,
    })?;
    let named = file.capture.bpf_directory;
    Ok(named.unwrap_or_else(|| Capture::default().bpf_directory))
}

#[cfg(test)]
mod tests;
