//! Links in the documents lead somewhere.

use super::Finding;

/// Checks the relative links of a Markdown file; `exists` knows paths from the root.
pub(super) fn check(
    path: &str,
    text: &str,
    exists: impl Fn(&str) -> bool,
    findings: &mut Vec<Finding>,
) {
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let mut fenced = false;
    for (line, content) in (1..).zip(text.lines()) {
        if content.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
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
                    found: format!("a link to {target}, which is not there"),
                    way_out: "correct the path, or take the link out",
                });
            }
        }
    }
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
    fn links_are_followed_from_the_documents_directory() {
        let text = "[a](../README.md) [b](x.rs#L3) [c](https://example.org/x)\n```\n[d](gone)\n```\n[e](gone.md)";
        let mut findings = Vec::new();
        let there = ["README.md", "ztunnel/x.rs"];
        check(
            "ztunnel/NOTES.md",
            text,
            |path| there.contains(&path),
            &mut findings,
        );
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].line, 5);
    }
}
