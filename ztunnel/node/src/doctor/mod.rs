//! `ztunnel doctor`: whether this machine has what a node needs, found out by trying rather than
//! by version numbers where trying does no harm. It changes nothing, and may run beside a proxy.
//!
//! A check is one line: a verdict, what was found, and what to do about it. What fails keeps a
//! proxy from starting or from serving its pods; a warning is about something that works less
//! well than it could.

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
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but could work better.
    Warn,
    /// It does not work.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is about: lower case, with dots between general and special.
    pub name: String,
    /// How it turned out.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it; nothing where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            verdict: Verdict::Ok,
            detail: detail.into(),
            remedy: None,
        }
    }

    fn warn(name: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warn,
            remedy: Some(remedy.into()),
            ..Self::ok(name, detail)
        }
    }

    fn fail(name: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            ..Self::warn(name, detail, remedy)
        }
    }
}

/// Looks at everything, with the settings of this file where there is one.
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
