//! `cargo xtask tidy`: the house rules that no compiler knows, as failing checks.
//!
//! A rule looks at one [`Source`] (or at the directory tree) and returns [`Finding`]s; it has
//! no state and reads no file itself, so its tests are text in, findings out.

mod documents;
mod layout;
mod rules;
mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::shell;
use source::Source;

/// Where Rust sources are.
const ROOMS: [&str; 4] = ["ebpf", "tests", "xtask", "ztunnel"];

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// The file, from the workspace's root.
    path: String,
    /// The line, from 1.
    line: usize,
    /// The rule's name.
    rule: &'static str,
    /// What was found.
    found: String,
    /// What to do about it.
    way_out: &'static str,
}

pub(crate) fn run() -> Result<ExitCode> {
    Ok(if check()? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Checks everything and prints what is wrong; whether nothing is.
pub(crate) fn check() -> Result<bool> {
    let root = shell::root();
    let mut findings = layout::top_level(&names(root)?);
    let mut sources = Vec::new();
    for path in files_below(root, &ROOMS, "rs")? {
        let text = read(root, &path)?;
        sources.push((path, text));
    }
    let tests: Vec<_> = sources
        .iter()
        .flat_map(|(path, text)| source::test_modules(path, text))
        .collect();
    for (path, text) in &sources {
        let source = Source::new(path, text, &tests);
        rules::check(&source, &mut findings);
    }
    let mut files = sources.len();
    for path in markdown(root)? {
        documents::check(
            &path,
            &read(root, &path)?,
            |target| root.join(target).exists(),
            &mut findings,
        );
        files += 1;
    }
    for finding in &findings {
        eprintln!(
            "{}:{}: {} [{}]\n    {}",
            finding.path, finding.line, finding.found, finding.rule, finding.way_out
        );
    }
    eprintln!("tidy: {files} files, {} findings", findings.len());
    Ok(findings.is_empty())
}

fn markdown(root: &Path) -> Result<Vec<String>> {
    let mut all = files_below(root, &["ebpf", "tests", "xtask", "ztunnel", "deploy"], "md")?;
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

/// Files with an extension below some directories, as paths from the root, without what
/// builds leave.
fn files_below(root: &Path, directories: &[&str], extension: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut waiting: Vec<PathBuf> = directories
        .iter()
        .map(PathBuf::from)
        .filter(|path| root.join(path).is_dir())
        .collect();
    while let Some(directory) = waiting.pop() {
        for name in names(&root.join(&directory))? {
            let path = directory.join(&name);
            if root.join(&path).is_dir() {
                if name != "target" {
                    waiting.push(path);
                }
            } else if has_extension(&name, extension) {
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}
