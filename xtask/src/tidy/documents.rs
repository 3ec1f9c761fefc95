//! Checks that links and file names in the documents exist.

use std::collections::BTreeSet;

use super::Finding;

/// File name extensions that identify a word in backticks as a file of the repository.
const ENDINGS: [&str; 4] = [".rs", ".md", ".toml", ".proto"];

/// Checks the relative links of a Markdown file. `exists` checks a path from the root.
pub(super) fn check_links(
    path: &str,
    text: &str,
    exists: impl Fn(&str) -> bool,
    findings: &mut Vec<Finding>,
) {
    let directory = directory(path);
    for (line, content) in prose(text) {
        for target in links(content) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.starts_with("mailto:") {
                continue;
            }
            if !exists(&resolve(directory, file)) {
                findings.push(Finding {
                    path: path.to_owned(),
                    line,
                    rule: "links",
                    found: format!("a link to {target}, which does not exist"),
                    way_out: "correct the path, or remove the link",
                });
            }
        }
    }
}

/// Whether the file names in a document are checked.
pub(super) fn names_files(path: &str) -> bool {
    matches!(path, "README.md" | "ARCHITECTURE.md") || path.starts_with("docs/")
}

/// Checks the files and folders in backticks of a document. `tree` has the paths of all files and
/// folders from the root.
pub(super) fn check_names(
    path: &str,
    text: &str,
    tree: &BTreeSet<String>,
    findings: &mut Vec<Finding>,
) {
    for (line, content) in prose(text) {
        // In a line that is split at its backticks, every second part is inside of them.
        for name in content.split('`').skip(1).step_by(2) {
            if !is_file_name(name, tree) {
                continue;
            }
            let matches = matching(directory(path), name.trim_end_matches('/'), tree);
            let found = match matches {
                1 => continue,
                0 => format!("`{name}`, which does not exist"),
                many => format!("`{name}`, which {many} paths end with"),
            };
            findings.push(Finding {
                path: path.to_owned(),
                line,
                rule: "file names",
                found,
                way_out: "name the file from the repository's root, from ztunnel/, or by an ending that only it has",
            });
        }
    }
}

/// Whether a word in backticks is a file or folder of this repository: it has an extension of a
/// source file, ends with a slash, or begins with a top-level folder.
fn is_file_name(name: &str, tree: &BTreeSet<String>) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    if !name.chars().all(plain) || name.starts_with(['/', '-']) || name.contains("//") {
        return false;
    }
    let Some((first, rest)) = name.split_once('/') else {
        // `.rs` alone is an extension, not a file.
        return ENDINGS
            .iter()
            .any(|ending| name.ends_with(ending) && name.len() > ending.len());
    };
    if first == "target" {
        return false;
    }
    let ours = tree.contains(first) || tree.contains(&format!("ztunnel/{first}"));
    let ending = ENDINGS.iter().any(|ending| name.ends_with(ending));
    rest.is_empty() || ending || ours
}

/// The number of paths that a name may refer to: one if it is exact, otherwise those that end with
/// it.
fn matching(directory: &str, name: &str, tree: &BTreeSet<String>) -> usize {
    let exact = [
        name.to_owned(),
        format!("ztunnel/{name}"),
        resolve(directory, name),
    ];
    if exact.iter().any(|path| tree.contains(path)) {
        return 1;
    }
    let ending = format!("/{name}");
    tree.iter().filter(|path| path.ends_with(&ending)).count()
}

/// The lines outside fenced blocks, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    (1..).zip(text.lines()).filter(move |(_, content)| {
        let fence = content.trim_start().starts_with("```");
        fenced ^= fence;
        !fence && !fenced
    })
}

fn directory(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// The targets of `[text](target)`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
}

fn resolve(directory: &str, file: &str) -> String {
    let mut parts: Vec<_> = directory
        .split('/')
        .filter(|part| !part.is_empty())
        .collect();
    for part in file.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            other => parts.push(other),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved_from_the_document() {
        let text = "[a](../README.md) [b](x.rs#L3) [c](https://example.org/x)\n```\n[d](gone)\n```\n[e](gone.md)";
        let mut findings = Vec::new();
        let existing = ["README.md", "ztunnel/x.rs"];
        check_links(
            "ztunnel/NOTES.md",
            text,
            |path| existing.contains(&path),
            &mut findings,
        );
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].line, 5);
    }

    fn found(text: &str) -> Vec<String> {
        let tree = [
            "docs",
            "docs/guide.md",
            "tests",
            "tests/e2e/one.rs",
            "ztunnel",
            "ztunnel/mesh",
            "ztunnel/mesh/src",
            "ztunnel/mesh/src/route.rs",
            "ztunnel/mesh/src/lib.rs",
            "ztunnel/node/src/lib.rs",
        ];
        let tree = tree.map(str::to_owned).into_iter().collect();
        let mut findings = Vec::new();
        check_names("docs/guide.md", text, &tree, &mut findings);
        findings.into_iter().map(|finding| finding.found).collect()
    }

    #[test]
    fn a_file_is_named_from_the_root_from_ztunnel_from_the_document_or_by_a_unique_ending() {
        let text = "`tests/e2e/one.rs` `mesh/src/route.rs` `mesh/` `guide.md` `../tests` `route.rs` `e2e/one.rs`";
        assert_eq!(found(text), [""; 0]);
    }

    #[test]
    fn a_file_that_does_not_exist_or_is_ambiguous_is_found() {
        assert_eq!(
            found("`mesh/src/judge.rs` and `tests/e2e/two`\n`lib.rs` `gone/`"),
            [
                "`mesh/src/judge.rs`, which does not exist",
                "`tests/e2e/two`, which does not exist",
                "`lib.rs`, which 2 paths end with",
                "`gone/`, which does not exist",
            ]
        );
    }

    #[test]
    fn other_words_in_backticks_are_not_files() {
        let text = "`/sys/fs/bpf` `heir/ports` `hbone.idle` `ztunnel version` `a//b` `node-a.yaml` `.rs`\n```\n`gone.rs`\n```";
        assert_eq!(found(text), [""; 0]);
    }
}
