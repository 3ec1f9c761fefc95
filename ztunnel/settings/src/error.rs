//! Errors of settings. Every message names the key, the variable or the file, the value that was
//! found and what was expected.

use std::path::PathBuf;

use mesh::local::LocalError;
use mesh::yaml::YamlError;
use mesh::{Fault, Uid};

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file is too long for a settings file.
    #[error("{}: the file has {length} bytes, at most {most} are allowed", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length, bytes.
        length: u64,
        /// The longest that is read, bytes.
        most: u64,
    },
    /// The settings file is not YAML, or a value has the wrong type.
    #[error("{}{source}", prefix(path))]
    Yaml {
        /// The file.
        path: PathBuf,
        /// The position and the problem.
        source: YamlError,
    },
    /// A variable of the environment has an invalid value.
    #[error("environment variable {name}: {problem}")]
    Environment {
        /// Its name.
        name: &'static str,
        /// The problem.
        problem: String,
    },
    /// The description of the mesh is invalid.
    #[error(transparent)]
    Mesh(#[from] LocalError),
    /// A required value is not set.
    #[error("{key}: not set; {remedy}")]
    Missing {
        /// The key.
        key: &'static str,
        /// How to set it.
        remedy: &'static str,
    },
    /// A value is too small or too large.
    #[error("{key}: {found} is out of range, {least} to {most} is possible")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// The value.
        found: String,
        /// The least possible.
        least: String,
        /// The most possible.
        most: String,
    },
    /// A value contradicts another one.
    #[error("{key}: {problem}")]
    Contradiction {
        /// The key.
        key: String,
        /// The contradiction.
        problem: String,
    },
    /// The mesh has no workload with this uid.
    #[error(
        "{key}: {:?} is not the uid of a workload{}",
        uid.0,
        nearest.as_ref().map(|meant| format!(", did you mean \"{meant}\"?")).unwrap_or_default()
    )]
    UnknownWorkload {
        /// The key.
        key: String,
        /// The uid.
        uid: Uid,
        /// The most similar known uid.
        nearest: Option<Uid>,
    },
    /// A value is listed twice.
    #[error("{key}: {found:?} is already listed at {first}")]
    Duplicate {
        /// The key of the second one.
        key: String,
        /// The value.
        found: String,
        /// The key of the first one.
        first: String,
    },
}

impl ConfigError {
    /// A stable name for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::TooLong { .. } => "too_long",
            Self::Yaml { .. } => "yaml",
            Self::Environment { .. } => "environment",
            Self::Mesh(_) => "mesh",
            Self::Missing { .. } => "missing",
            Self::OutOfRange { .. } => "out_of_range",
            Self::Contradiction { .. } => "contradiction",
            Self::UnknownWorkload { .. } => "unknown_workload",
            Self::Duplicate { .. } => "duplicate",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Mesh(error) => error.fault(),
            _ => Fault::Us,
        }
    }
}

fn prefix(path: &std::path::Path) -> String {
    if path.as_os_str().is_empty() {
        String::new()
    } else {
        format!("{}: ", path.display())
    }
}
