//! Why settings cannot be used. Every message names the key, the variable or the file, what was
//! found there and what was expected.

use std::path::PathBuf;

use mesh::local::LocalError;
use mesh::yaml::YamlError;
use mesh::{Fault, Uid};

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file is longer than any settings file.
    #[error("{}: {length} bytes are too many, at most {most} are read", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length, bytes.
        length: u64,
        /// The longest that is read, bytes.
        most: u64,
    },
    /// The settings file is no YAML, or a value is not what its key expects.
    #[error("{}{source}", prefix(path))]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: YamlError,
    },
    /// A variable of the environment is not what its name expects.
    #[error("environment variable {name}: {problem}")]
    Environment {
        /// Its name.
        name: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The description of the mesh is wrong.
    #[error(transparent)]
    Mesh(#[from] LocalError),
    /// A value is needed that nothing sets.
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
    /// A value is not possible here.
    #[error("{key}: {problem}")]
    Contradiction {
        /// The key.
        key: String,
        /// What it contradicts.
        problem: String,
    },
    /// A workload is named that the mesh does not have.
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
        /// One that looks like it.
        nearest: Option<Uid>,
    },
    /// Something is listed twice.
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
    /// A short name out of a closed set, for metrics and logs.
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
