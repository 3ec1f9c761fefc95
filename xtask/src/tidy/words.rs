//! Checks for words that hide the subject of a sentence. Each sentence should name its subject.

use super::Finding;
use super::source::Source;

/// Words that are used instead of a name.
const WORDS: [&str; 4] = ["somebody", "nobody", "whoever", "everybody"];

/// The checked files and folders.
const CHECKED: [&str; 7] = [
    "ztunnel/",
    "tests/",
    "ebpf/",
    "xtask/",
    "docs/",
    "README.md",
    "ARCHITECTURE.md",
];

/// Checks the production part of a source, including comments and texts.
pub(super) fn check_source(source: &Source<'_>, findings: &mut Vec<Finding>) {
    check_lines(source.path, source.production_text(), findings);
}

/// Checks a document.
pub(super) fn check_document(path: &str, text: &str, findings: &mut Vec<Finding>) {
    check_lines(path, (1..).zip(text.lines()), findings);
}

fn check_lines<'a>(
    path: &str,
    lines: impl Iterator<Item = (usize, &'a str)>,
    findings: &mut Vec<Finding>,
) {
    let below = |places: &[&str]| places.iter().any(|place| path.starts_with(place));
    // This file contains the words itself.
    if !below(&CHECKED) || path == "xtask/src/tidy/words.rs" {
        return;
    }
    for (line, text) in lines {
        let lower = text.to_lowercase();
        let mut words = lower.split(|c: char| !c.is_alphanumeric());
        if let Some(word) = words.find(|word| WORDS.contains(word)) {
            findings.push(Finding {
                path: path.to_owned(),
                line,
                rule: "words",
                found: format!("the word `{word}`"),
                way_out: "name the subject: the proxy, the pod, the control plane, the caller",
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        let mut findings = Vec::new();
        check_source(&Source::new(path, text, &[]), &mut findings);
        findings.into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn words_without_a_subject_are_found_in_comments_and_messages() {
        let text = "// Nobody waits.\nlet x = \"whoever asks\";\n// nobodys\n#[cfg(test)]\nmod tests {\n// somebody\n}";
        assert_eq!(lines("ztunnel/settings/src/x.rs", text), [1, 2]);
    }

    #[test]
    fn other_folders_are_not_checked() {
        assert_eq!(lines("deploy/x.rs", "// nobody"), [0; 0]);
    }

    #[test]
    fn documents_are_checked_too() {
        let mut findings = Vec::new();
        check_document("docs/a.md", "valid\nEverybody knows.", &mut findings);
        check_document("deploy/README.md", "Everybody knows.", &mut findings);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].line, 2);
    }
}
