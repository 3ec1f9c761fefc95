//! Reading YAML written by people: every complaint names the path of the value it is about, the
//! line, and for a misspelt key the one that was probably meant.
//!
//! Used for the local file of the mesh and for the settings file. Unknown keys are refused by the
//! types read (`deny_unknown_fields`); this file only makes the complaint readable.

use std::marker::PhantomData;

use serde::de::{DeserializeOwned, Visitor};
use serde_yaml_ng::{Deserializer, Mapping, Value};

/// What is wrong with a YAML text, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YamlError {
    /// Where in the document, for example `workloads[2].protocol`; empty for the whole.
    pub path: String,
    /// The line, from 1, where it is known.
    pub line: Option<usize>,
    /// What is wrong there.
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
/// When it is no YAML, holds a key twice, or is not what the type expects.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    let value: Value = serde_yaml_ng::from_str(text).map_err(|error| {
        let message = error.to_string();
        // For a key that stands there twice the parser only knows where the mapping begins.
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
        // A value has forgotten its line; the text is read again to learn it.
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

/// The parser ends its messages with a position, which is reported apart from them.
fn without_location(message: &str) -> &str {
    message
        .find(" at line ")
        .map_or(message, |end| &message[..end])
}

/// serde's message for an unknown key lists every key there is; the nearest one is what helps.
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

/// Reads a text and turns it into something. A complaint made here bears the line of the text; one
/// made after the text was read would bear that of the mapping around it.
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

/// The known name nearest to the one found, if it is near enough to be a slip.
pub fn nearest<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    // Long names of an attacker or a broken file are not worth a quadratic comparison.
    if found.len() > 64 {
        return None;
    }
    let slips = found.chars().count().div_ceil(3).min(3);
    let found = found.to_lowercase().replace(['_', '-'], "");
    known
        .iter()
        .map(|name| (distance(&found, &name.to_lowercase()), *name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= slips)
        .map(|(_, name)| name)
}

/// The number of single-character edits between two texts (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut last = i + 1;
        for (right, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = *cell;
            last = replaced.min(last + 1).min(diagonal + 1);
            *cell = last;
        }
    }
    row.last()
        .copied()
        .unwrap_or_default()
        .max(if b.is_empty() { a.chars().count() } else { 0 })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    #[allow(dead_code, reason = "only the complaints are looked at")]
    struct Sample {
        #[serde(default)]
        items: Vec<Item>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    #[allow(dead_code, reason = "only the complaints are looked at")]
    struct Item {
        protocol: String,
        #[serde(default)]
        ports: BTreeMap<u16, u16>,
    }

    #[test]
    fn complaints_name_path_line_and_remedy() {
        for (text, complaint) in [
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
            assert_eq!(error.to_string(), complaint, "{text}");
        }
    }

    #[test]
    fn an_empty_text_is_an_empty_mapping() {
        assert!(read::<Sample>("").is_ok());
        assert!(read::<Sample>("# nothing\n").is_ok());
    }

    #[test]
    fn distances() {
        assert_eq!(
            (
                distance("kitten", "sitting"),
                distance("", "ab"),
                distance("ab", ""),
                distance("x", "x")
            ),
            (3, 2, 2, 0)
        );
        assert_eq!(nearest(&"x".repeat(100_000), &["protocol"]), None);
    }
}
