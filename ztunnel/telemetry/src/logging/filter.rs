//! The log's filter: a default level, and levels for single targets.
//!
//! The parser is stricter than tracing-subscriber's own, which takes a misspelt level for the name
//! of a target and then logs only that target.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use super::targets::resolve;
use mesh::Fault;

/// The longest text and the most targets of a filter, which may arrive over HTTP.
const TEXT_LIMIT: usize = 4096;
const TARGET_LIMIT: usize = 64;

/// Levels by target. Its text form is what `RUST_LOG` and `/logging?level=` take:
/// `info,ztunnel::node::proxy=debug,access=off`. A target includes all targets below it, and
/// `ztunnel` all crates of the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    default: LevelFilter,
    targets: BTreeMap<String, LevelFilter>,
}

/// A text that is not a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A level has an unknown name.
    #[error("{level:?} is not a level: expected off, error, warn, info, debug or trace")]
    UnknownLevel {
        /// The name.
        level: String,
    },
    /// A target is empty or contains characters that no Rust module path has.
    #[error("{target:?} is not a target: expected a module path such as ztunnel::node::proxy")]
    BadTarget {
        /// The target.
        target: String,
    },
    /// The text is empty.
    #[error("the filter is empty: expected for example info,ztunnel::node::proxy=debug")]
    Empty,
    /// The text is longer than any useful filter.
    #[error("the filter is too long: at most {TEXT_LIMIT} bytes and {TARGET_LIMIT} targets")]
    TooLong,
}

impl FilterError {
    /// A stable name, for labels and fields.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::UnknownLevel { .. } => "filter_unknown_level",
            Self::BadTarget { .. } => "filter_bad_target",
            Self::Empty => "filter_empty",
            Self::TooLong => "filter_too_long",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Downstream
    }
}

impl Filter {
    /// This filter with `text` applied: a bare level (`debug`) replaces the whole filter, levels of
    /// targets (`ztunnel::node=debug`) are added to it. `target:level` means `target=level`, because
    /// `istioctl` writes it so.
    ///
    /// # Errors
    /// If the text is not a filter; the error names the wrong part.
    pub fn with(&self, text: &str) -> Result<Self, FilterError> {
        if text.len() > TEXT_LIMIT {
            return Err(FilterError::TooLong);
        }
        let parts: Vec<_> = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .collect();
        if parts.is_empty() {
            return Err(FilterError::Empty);
        }
        let mut targets = BTreeMap::new();
        let mut default = None;
        for part in parts {
            match split(part) {
                Some((target, name)) => {
                    let target = target.trim();
                    let plain = |c: char| c.is_ascii_alphanumeric() || "_:-.".contains(c);
                    if target.is_empty() || !target.chars().all(plain) {
                        return Err(FilterError::BadTarget {
                            target: shortened(target),
                        });
                    }
                    targets.insert(target.to_owned(), level(name.trim())?);
                }
                None => default = Some(level(part)?),
            }
        }
        let mut filter = match default {
            Some(default) => Self {
                default,
                targets: BTreeMap::new(),
            },
            None => self.clone(),
        };
        filter.targets.extend(targets);
        if filter.targets.len() > TARGET_LIMIT {
            return Err(FilterError::TooLong);
        }
        Ok(filter)
    }

    pub(super) fn targets(&self) -> Targets {
        Targets::new()
            .with_default(self.default)
            .with_targets(resolve(&self.targets))
    }
}

/// Target and level of `target=level` or `target:level`; `None` for a bare level.
fn split(part: &str) -> Option<(&str, &str)> {
    part.split_once('=').or_else(|| {
        part.rsplit_once(':')
            .filter(|(target, _level)| !target.ends_with(':'))
    })
}

fn level(name: &str) -> Result<LevelFilter, FilterError> {
    const LEVELS: [(&str, LevelFilter); 6] = [
        ("off", LevelFilter::OFF),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ];
    LEVELS
        .into_iter()
        .find(|(text, _level)| text.eq_ignore_ascii_case(name))
        .map(|(_text, level)| level)
        .ok_or_else(|| FilterError::UnknownLevel {
            level: shortened(name),
        })
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

impl Default for Filter {
    /// `info` for everything.
    fn default() -> Self {
        Self {
            default: LevelFilter::INFO,
            targets: BTreeMap::new(),
        }
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    /// The default level is `info`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::default().with(text)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.default)?;
        self.targets
            .iter()
            .try_for_each(|(target, level)| write!(f, ",{target}={level}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_targets_are_parsed() {
        for (text, expected) in [
            ("debug", "debug"),
            (
                " INFO , ztunnel::node::proxy = debug ",
                "info,ztunnel::node::proxy=debug",
            ),
            (
                "ztunnel::path=debug,access=off",
                "info,access=off,ztunnel::path=debug",
            ),
            ("ztunnel::path:trace,warn", "warn,ztunnel::path=trace"),
            ("off", "off"),
        ] {
            assert_eq!(
                text.parse::<Filter>().unwrap().to_string(),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn a_bare_level_replaces_the_filter_and_a_target_extends_it() {
        let filter: Filter = "info,h2=off".parse().unwrap();
        assert_eq!(
            filter.with("access=off").unwrap().to_string(),
            "info,access=off,h2=off"
        );
        assert_eq!(filter.with("debug").unwrap().to_string(), "debug");
    }

    #[test]
    fn errors_name_the_wrong_part() {
        for (text, expected) in [
            ("bogus", "\"bogus\" is not a level"),
            ("info,ztunnel=loud", "\"loud\" is not a level"),
            ("ztunnel::path", "\"ztunnel::path\" is not a level"),
            ("=debug", "\"\" is not a target"),
            ("a b=debug", "\"a b\" is not a target"),
            (" , ", "the filter is empty"),
            ("", "the filter is empty"),
        ] {
            let error = text.parse::<Filter>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert_eq!(
            "a".repeat(5000).parse::<Filter>(),
            Err(FilterError::TooLong)
        );
        let many: String = (0..100).map(|n| format!("t{n}=info,")).collect();
        assert_eq!(many.parse::<Filter>(), Err(FilterError::TooLong));
    }
}
