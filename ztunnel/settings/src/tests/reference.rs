//! The reference agrees with the program.

use std::collections::BTreeSet;

use super::super::{file::File, reference};
use mesh::yaml;

#[test]
fn the_reference_lists_exactly_the_keys_of_the_file() {
    let mut known = BTreeSet::new();
    keys("", &mut known);
    let listed: BTreeSet<String> = reference::rows()
        .iter()
        .map(|row| row.key.to_owned())
        .collect();
    assert_eq!(listed, known);
}

/// Collects the keys of the file's types from the error about an unknown key.
fn keys(section: &str, known: &mut BTreeSet<String>) {
    let path: Vec<&str> = section.split('.').filter(|part| !part.is_empty()).collect();
    let mut text = String::new();
    for (depth, part) in path.iter().enumerate() {
        text.push_str(&format!("{}{part}:\n", "  ".repeat(depth)));
    }
    text.push_str(&format!("{}zzzzzzzzzzzzzzzz: 1\n", "  ".repeat(path.len())));
    let error = yaml::read::<File>(&text).unwrap_err();
    let Some(names) = error
        .problem
        .strip_prefix("unknown field, expected one of ")
    else {
        // A value, not a section.
        known.insert(section.to_owned());
        return;
    };
    for name in names.split(", ") {
        let key = if section.is_empty() {
            name.to_owned()
        } else {
            format!("{section}.{name}")
        };
        keys(&key, known);
    }
}

#[test]
fn the_document_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/settings.md");
    let text = reference::markdown();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == text,
        "docs/settings.md is out of date; generate it with \
         UPDATE=1 cargo test -p settings --lib reference"
    );
}
