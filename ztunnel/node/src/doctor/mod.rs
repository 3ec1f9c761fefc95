//! `ztunnel doctor`: checks whether this machine meets the requirements of a node. Where a trial does
//! no harm, it tries a feature instead of comparing version numbers. It changes nothing, and can run
//! next to a proxy.
//!
//! A check is one line: a status, a finding, and a remedy. A failed check keeps a proxy from
//! starting or from serving its pods; a warning is about something that works less well than it
//! could.

mod acceleration;
mod capture;
mod machine;
mod ports;
mod read_settings;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

use serde::Serialize;

/// How a check turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The requirement is met.
    Ok,
    /// The proxy works, but could work better.
    Warn,
    /// The proxy cannot start, or cannot serve its pods.
    Fail,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The subject, in lower case: general and specific parts with dots between them.
    pub name: String,
    /// How it turned out.
    #[serde(rename = "verdict")]
    pub status: Status,
    /// The finding.
    pub detail: String,
    /// What to do; none if the status is ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            status: Status::Ok,
            detail: detail.into(),
            remedy: None,
        }
    }

    fn warn(name: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status: Status::Warn,
            remedy: Some(remedy.into()),
            ..Self::ok(name, detail)
        }
    }

    fn fail(name: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status: Status::Fail,
            ..Self::warn(name, detail, remedy)
        }
    }
}

/// Runs all checks with the settings of this file, or with the defaults.
#[must_use]
pub fn examine(file: Option<&Path>) -> Vec<Check> {
    let (settings, mut checks) = read_settings::read(file);
    checks.extend(machine::examine());
    checks.extend(capture::examine(&settings));
    checks.extend(ports::examine(&settings));
    checks.extend(read_settings::pods(&settings));
    checks.extend(acceleration::examine(&settings));
    checks
}
