//! Reads YAML files with readable error messages: each names the path of the value, the line, and
//! for an unknown key the known key that is nearest.
//!
//! Used for the local file of the mesh and for the settings file. The types refuse unknown keys
//! (`deny_unknown_fields`); `serde_path_to_error` adds the path. Two things remain to be done here:
//! serde_yaml_ng keeps errors of unknown keys as text only, so the known keys are taken from that
//! text, and its messages either lack the line or contain path and line already, so a failed document
//! is read a second time for its line.

use std::marker::PhantomData;

use serde::de::{DeserializeOwned, Visitor};
use serde_yaml_ng::{Deserializer, Mapping, Value};
use strsim::levenshtein;

/// An error in a YAML text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YamlError {
    /// The path of the value, for example `workloads[2].protocol`; empty for the whole document.
    pub path: String,
    /// The line, from 1, if it is known.
    pub line: Option<usize>,
    /// The problem with the value.
    pub problem: String,
}

impl std::fmt::Display for YamlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.problem)?;
        self.line.map_or(Ok(()), |line| write!(f, " (line {line})"))
    }
}

impl std::error::Error for YamlError {}

/// Reads one document. An empty text is an empty mapping.
///
/// # Errors
/// When it is no YAML, repeats a key, or does not match the type.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    let value: Value = serde_yaml_ng::from_str(text).map_err(|error| {
        let message = error.to_string();
        // For a repeated key the parser only knows where the mapping begins.
        let location = error
            .location()
            .filter(|_| !message.contains("duplicate entry"));
        let problem = without_location(&message).to_owned();
        YamlError {
            path: String::new(),
            line: location.map(|l| l.line()),
            problem,
        }
    })?;
    let value = if value.is_null() {
        Value::Mapping(Mapping::new())
    } else {
        value
    };
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let problem = explain(&error.inner().to_string());
        // A parsed value has no line, so the text is read again.
        let again: Result<T, _> = serde_path_to_error::deserialize(Deserializer::from_str(text));
        let line = again
            .err()
            .and_then(|e| e.inner().location())
            .map(|l| l.line());
        YamlError {
            path: if path == "." { String::new() } else { path },
            line,
            problem,
        }
    })
}

/// Removes the position at the end of a message of the parser.
fn without_location(message: &str) -> &str {
    message
        .find(" at line ")
        .map_or(message, |end| &message[..end])
}

/// Shortens serde's message for an unknown key, which lists all known keys, to the nearest one.
fn explain(message: &str) -> String {
    let Some(rest) = message.strip_prefix("unknown field `") else {
        return message.to_owned();
    };
    let mut names = rest.split('`').step_by(2);
    let found = names.next().unwrap_or_default();
    let known: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
    match nearest(found, &known) {
        Some(meant) => format!("unknown field, did you mean \"{meant}\"?"),
        None if known.is_empty() => "unknown field, none is expected here".to_owned(),
        None => format!("unknown field, expected one of {}", known.join(", ")),
    }
}

/// Reads a string and parses it. An error of `parse` gets the line of the string; an error that is
/// reported after the string was read would get the line of the mapping around it.
pub fn parsed<'de, D, T, E>(
    deserializer: D,
    expected: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    E: std::fmt::Display,
{
    deserializer.deserialize_str(Parsed {
        expected,
        parse,
        what: PhantomData,
    })
}

struct Parsed<'a, F, T, E> {
    expected: &'a str,
    parse: F,
    what: PhantomData<fn() -> Result<T, E>>,
}

impl<T, E: std::fmt::Display, F: FnOnce(&str) -> Result<T, E>> Visitor<'_> for Parsed<'_, F, T, E> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<X: serde::de::Error>(self, text: &str) -> Result<T, X> {
        (self.parse)(text.trim()).map_err(X::custom)
    }
}

/// The known name nearest to the one found, if it is near enough to be a typing error.
pub fn nearest<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    // The comparison is quadratic, and a long name is no typing error.
    if found.len() > 64 {
        return None;
    }
    let limit = found.chars().count().div_ceil(3).min(3);
    let found = found.to_lowercase().replace(['_', '-'], "");
    known
        .iter()
        .map(|name| (levenshtein(&found, &name.to_lowercase()), *name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= limit)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    #[allow(dead_code, reason = "only the errors are checked")]
    struct Sample {
        #[serde(default)]
        items: Vec<Item>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    #[allow(dead_code, reason = "only the errors are checked")]
    struct Item {
        protocol: String,
        #[serde(default)]
        ports: BTreeMap<u16, u16>,
    }

    #[test]
    fn errors_name_path_line_and_the_nearest_key() {
        for (text, message) in [
            (
                "items:\n- protcol: x\n",
                r#"items[0].protcol: unknown field, did you mean "protocol"? (line 2)"#,
            ),
            (
                "items:\n- zebra: x\n",
                "items[0].zebra: unknown field, expected one of protocol, ports (line 2)",
            ),
            (
                "items:\n- ports: {}\n",
                "items[0]: missing field `protocol` (line 2)",
            ),
            (
                "items:\n- protocol: x\n  ports: {80: a}\n",
                "items[0].ports.80: invalid type: string \"a\", expected u16 (line 3)",
            ),
            (
                "items: 3\n",
                "items: invalid type: integer `3`, expected a sequence (line 1)",
            ),
            ("items: [\n", "did not find expected node content (line 2)"),
            (
                "items: []\nitems: []\n",
                "duplicate entry with key \"items\"",
            ),
        ] {
            let error = read::<Sample>(text).expect_err(text);
            assert_eq!(error.to_string(), message, "{text}");
        }
    }

    #[test]
    fn an_empty_text_is_an_empty_mapping() {
        assert!(read::<Sample>("").is_ok());
        assert!(read::<Sample>("# nothing\n").is_ok());
    }

    #[test]
    fn the_nearest_name_ignores_case_and_separators() {
        let known = ["protocol", "workloadIps", "network"];
        for (found, expected) in [
            ("protcol", Some("protocol")),
            ("workload_ips", Some("workloadIps")),
            ("NETWROK", Some("network")),
            ("zebra", None),
            ("", None),
        ] {
            assert_eq!(nearest(found, &known), expected, "{found}");
        }
        assert_eq!(nearest(&"x".repeat(100_000), &known), None);
    }
}
