//! Checks the top-level directory, whose names are fixed.

use super::Finding;

/// The allowed names.
const ALLOWED: [&str; 13] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "deploy",
    "docs",
    "ebpf",
    "tests",
    "xtask",
    "ztunnel",
];
/// Files with names that tools require.
const TOOLS: [&str; 4] = [
    "clippy.toml",
    "deny.toml",
    "rust-toolchain.toml",
    "rustfmt.toml",
];
/// Directories that builds and runs create; none of them is committed.
const GENERATED: [&str; 2] = ["target", "state"];

pub(super) fn top_level(names: &[String]) -> Vec<Finding> {
    names
        .iter()
        .filter(|name| {
            let name = name.as_str();
            !name.starts_with('.')
                && !ALLOWED.contains(&name)
                && !TOOLS.contains(&name)
                && !GENERATED.contains(&name)
        })
        .map(|name| Finding {
            path: name.clone(),
            line: 1,
            rule: "layout",
            found: format!("`{name}` in the top-level directory"),
            way_out: "move it into the folder it belongs to; the top level is fixed (ARCHITECTURE.md)",
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_at_the_top_level_are_found() {
        let names = [
            ".ci",
            "Cargo.toml",
            "deny.toml",
            "docs",
            "target",
            "scripts",
        ]
        .map(str::to_owned);
        let findings = top_level(&names);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].path, "scripts");
    }
}
