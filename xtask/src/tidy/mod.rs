//! `cargo xtask tidy`: checks the house rules that the compiler does not check.
//!
//! A rule checks one [`Source`] or the directory tree and returns [`Finding`]s. Rules have no state
//! and read no files, so their tests compare a text with its findings.

mod cycles;
mod documents;
mod imports;
mod layout;
mod rules;
mod source;
mod words;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::shell;
use source::Source;

/// The folders with Rust sources.
const SOURCES: [&str; 4] = ["ebpf", "tests", "xtask", "ztunnel"];

/// The top-level folders.
const FOLDERS: [&str; 6] = ["deploy", "docs", "ebpf", "tests", "xtask", "ztunnel"];

/// A violation of a rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// The path of the file from the workspace's root.
    path: String,
    /// The line number, from 1.
    line: usize,
    /// The rule's name.
    rule: &'static str,
    /// The violation.
    found: String,
    /// The remedy.
    way_out: &'static str,
}

pub(crate) fn run() -> Result<ExitCode> {
    Ok(if check()? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Checks everything and prints the findings. Returns whether there are none.
pub(crate) fn check() -> Result<bool> {
    let root = shell::root();
    let mut findings = layout::top_level(&names(root)?);
    let tree = tree(root)?;
    let files = sources(root, &mut findings)? + documents(root, &tree, &mut findings)?;
    for finding in &findings {
        eprintln!(
            "{}:{}: {} [{}]\n    {}",
            finding.path, finding.line, finding.found, finding.rule, finding.way_out
        );
    }
    eprintln!("tidy: {files} files, {} findings", findings.len());
    Ok(findings.is_empty())
}

/// Checks all Rust sources. Returns their number.
fn sources(root: &Path, findings: &mut Vec<Finding>) -> Result<usize> {
    let mut texts = Vec::new();
    for path in files_below(root, &SOURCES, "rs")? {
        let text = read(root, &path)?;
        texts.push((path, text));
    }
    let tests: Vec<_> = texts
        .iter()
        .flat_map(|(path, text)| source::test_modules(path, text))
        .collect();
    let sources: Vec<_> = texts
        .iter()
        .map(|(path, text)| Source::new(path, text, &tests))
        .collect();
    for source in &sources {
        rules::check(source, findings);
        words::check_source(source, findings);
    }
    cycles::check(&sources, findings);
    Ok(sources.len())
}

/// Checks all documents. Returns their number.
fn documents(root: &Path, tree: &BTreeSet<String>, findings: &mut Vec<Finding>) -> Result<usize> {
    let paths = markdown(root)?;
    for path in &paths {
        let text = read(root, path)?;
        documents::check_links(path, &text, |target| root.join(target).exists(), findings);
        if documents::names_files(path) {
            documents::check_names(path, &text, tree, findings);
        }
        words::check_document(path, &text, findings);
    }
    Ok(paths.len())
}

fn markdown(root: &Path) -> Result<Vec<String>> {
    let mut all = files_below(root, &FOLDERS, "md")?;
    all.extend(
        names(root)?
            .into_iter()
            .filter(|name| has_extension(name, "md")),
    );
    Ok(all)
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory)
        .with_context(|| format!("listing {}", directory.display()))?
        .collect::<Result<Vec<_>, _>>()?;
    let mut names: Vec<_> = entries
        .iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

fn read(root: &Path, path: &str) -> Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("reading {path}"))
}

fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path)
        .extension()
        .is_some_and(|found| found == extension)
}

/// Files with an extension below some directories, as paths from the root.
fn files_below(root: &Path, directories: &[&str], extension: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    walk(root, directories, |path, is_directory| {
        if !is_directory && has_extension(path, extension) {
            found.push(path.to_owned());
        }
    })?;
    found.sort();
    Ok(found)
}

/// All files and folders that documents may reference, as paths from the root.
fn tree(root: &Path) -> Result<BTreeSet<String>> {
    let mut found: BTreeSet<String> = names(root)?.into_iter().collect();
    walk(root, &FOLDERS, |path, _| {
        found.insert(path.to_owned());
    })?;
    Ok(found)
}

/// Calls `see` for every file and folder below some directories, except those that builds create.
fn walk(root: &Path, directories: &[&str], mut see: impl FnMut(&str, bool)) -> Result<()> {
    let mut waiting: Vec<PathBuf> = directories
        .iter()
        .map(PathBuf::from)
        .filter(|path| root.join(path).is_dir())
        .collect();
    while let Some(directory) = waiting.pop() {
        for name in names(&root.join(&directory))? {
            if name == "target" {
                continue;
            }
            let path = directory.join(&name);
            let is_directory = root.join(&path).is_dir();
            see(&path.to_string_lossy(), is_directory);
            if is_directory {
                waiting.push(path);
            }
        }
    }
    Ok(())
}
