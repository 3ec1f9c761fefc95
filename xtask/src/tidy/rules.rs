//! Rules for single source files: size, `unsafe`, the environment, names, reasons, and crates that
//! only some folders may use.

use super::Finding;
use super::source::Source;

/// The largest number of lines of production code in a file.
const LINES: usize = 500;
/// Files that may be longer, with the reason.
const LONG: [(&str, &str); 0] = [];
/// The files and folders that may contain `unsafe`.
const UNSAFE: [&str; 5] = [
    "ebpf/",
    "ztunnel/node/src/bpf/",
    "ztunnel/node/src/pods/",
    // Packets with file descriptors: recvmsg(2) has no safe call that bounds them.
    "ztunnel/node/src/agent/zds/packet.rs",
    "tests/",
];
/// Crates that only some folders may use: names in code, folders, remedy.
const CONFINED: [(&[&str], &[&str], &str); 2] = [
    (
        &["aya", "aya_log", "aya_obj", "ztunnel_ebpf_types"],
        &["ztunnel/node/src/bpf/"],
        "use what `node::bpf` offers; only it knows maps and programs",
    ),
    (
        &["api"],
        &[
            "ztunnel/api/",
            "ztunnel/upstream/",
            "ztunnel/node/src/agent/",
            "ztunnel/node/benches/",
        ],
        "decode it at the edge: generated types stay in `upstream` and `node::agent`",
    ),
];
/// The files and folders that may read the environment.
const ENVIRONMENT: [&str; 5] = [
    "ztunnel/settings/",
    "ztunnel/api/build.rs",
    "ztunnel/node/build.rs",
    "xtask/",
    "tests/",
];
/// Calls that read or change the environment.
const ENVIRONMENT_CALLS: [&str; 5] = [
    "env::var(",
    "env::var_os(",
    "env::vars(",
    "env::vars_os(",
    "env::set_var(",
];
/// The folders that may use `anyhow`, because their errors are printed at once.
const ANYHOW: [&str; 4] = [
    "ztunnel/src/",
    "ztunnel/tunnel/benches/",
    "xtask/",
    "tests/",
];
/// File names that do not describe a job.
const NAMES: [&str; 7] = [
    "util", "utils", "helper", "helpers", "common", "manager", "misc",
];

pub(super) fn check(source: &Source<'_>, findings: &mut Vec<Finding>) {
    let mut report = |line: usize, rule: &'static str, found: String, way_out: &'static str| {
        findings.push(Finding {
            path: source.path.to_owned(),
            line,
            rule,
            found,
            way_out,
        });
    };
    let count = source.production_count();
    if count > LINES && !LONG.iter().any(|(path, _)| *path == source.path) {
        report(
            LINES + 1,
            "size",
            format!("{count} lines of production code, {LINES} are allowed"),
            "split it by job, or list it with a reason in xtask/src/tidy/rules.rs",
        );
    }
    if let Some(name) = bad_name(source.path) {
        report(
            1,
            "names",
            format!("a module called `{name}`"),
            "name it after its job",
        );
    }
    for (line, code) in source.lines() {
        if has_word(code, "unsafe") && !within(source.path, &UNSAFE) {
            report(
                line,
                "unsafe",
                "`unsafe` outside the allowed folders".to_owned(),
                "use a safe call (nix, socket2), or move it into `bpf` or `pods`",
            );
        }
    }
    for (line, found) in allows_without_reason(source) {
        report(
            line,
            "reasons",
            found,
            "add `reason = \"…\"`, which explains why the lint does not apply",
        );
    }
    for (line, code) in source.production() {
        production_line(source.path, code, |rule, found, way_out| {
            report(line, rule, found, way_out);
        });
    }
}

fn production_line(
    path: &str,
    code: &str,
    mut report: impl FnMut(&'static str, String, &'static str),
) {
    let product = path.starts_with("ztunnel/");
    if !within(path, &ENVIRONMENT)
        && let Some(call) = ENVIRONMENT_CALLS.iter().find(|call| code.contains(*call))
    {
        report(
            "environment",
            format!("`{call})` uses the environment"),
            "make it a setting: only ztunnel/settings reads the environment",
        );
    }
    if product && has_word(code, "anyhow") && !within(path, &ANYHOW) {
        report(
            "errors",
            "`anyhow` in a library crate".to_owned(),
            "give the crate's error enum a variant that names the object and what was found",
        );
    }
    for (crates, folders, way_out) in CONFINED {
        if product
            && !within(path, folders)
            && let Some(name) = crates.iter().find(|name| uses_crate(code, name))
        {
            report("crates", format!("the crate `{name}`"), way_out);
        }
    }
    if product && code.contains(".expect(") {
        report(
            "errors",
            "`.expect()` in production code".to_owned(),
            "return an error, or make the case impossible by its type",
        );
    }
}

fn within(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| path.starts_with(place))
}

/// Whether a line has a path that begins with a crate's name.
fn uses_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].trim_end();
        let inside = |c: char| c.is_alphanumeric() || c == '_';
        let begins = !code[..at].ends_with(inside) && !before.ends_with("::");
        let after = code[at + name.len()..].trim_start();
        let imported = before.ends_with("use") && after.starts_with([';', ' ']);
        begins && (after.starts_with("::") || imported)
    })
}

fn bad_name(path: &str) -> Option<&'static str> {
    let names = path.trim_end_matches(".rs").split('/');
    NAMES
        .into_iter()
        .find(|bad| names.clone().any(|name| name == *bad))
}

fn has_word(code: &str, wanted: &str) -> bool {
    code.split(|character: char| !character.is_alphanumeric() && character != '_')
        .any(|word| word == wanted)
}

/// Attributes that allow a lint without a reason; they may span lines.
fn allows_without_reason(source: &Source<'_>) -> Vec<(usize, String)> {
    let lines: Vec<_> = source.lines().collect();
    let mut found = Vec::new();
    for (at, (line, code)) in lines.iter().enumerate() {
        let code = code.trim_start();
        let Some(kind) = ["allow", "expect"].into_iter().find(|kind| {
            code.starts_with(&format!("#[{kind}(")) || code.starts_with(&format!("#![{kind}("))
        }) else {
            continue;
        };
        let attribute = lines[at..]
            .iter()
            .map(|(_, code)| *code)
            .scan(false, |ended, code| {
                (!std::mem::replace(ended, code.trim_end().ends_with(']'))).then_some(code)
            });
        if !attribute.into_iter().any(|code| has_word(code, "reason")) {
            found.push((*line, format!("`{kind}` without a reason")));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<(usize, &'static str)> {
        let mut findings = Vec::new();
        check(&Source::new(path, text, &[]), &mut findings);
        findings
            .into_iter()
            .map(|finding| (finding.line, finding.rule))
            .collect()
    }

    #[test]
    fn each_rule_finds_its_violation() {
        for (path, text, expected) in [
            (
                "ztunnel/tunnel/src/x.rs",
                "a();\nunsafe { b() }",
                (2, "unsafe"),
            ),
            (
                "ztunnel/tunnel/src/x.rs",
                "let x = std::env::var(\"X\");",
                (1, "environment"),
            ),
            ("ztunnel/tunnel/src/util.rs", "", (1, "names")),
            ("ztunnel/common/src/x.rs", "", (1, "names")),
            (
                "ztunnel/tunnel/src/x.rs",
                "#[allow(dead_code)]\nfn f() {}",
                (1, "reasons"),
            ),
            (
                "ztunnel/tunnel/src/x.rs",
                "#[allow(\n    dead_code\n)]\nfn reason() {}",
                (1, "reasons"),
            ),
            (
                "ztunnel/tunnel/src/x.rs",
                "use anyhow::Result;",
                (1, "errors"),
            ),
            (
                "ztunnel/tunnel/src/x.rs",
                "x.expect(\"there\");",
                (1, "errors"),
            ),
            (
                "ztunnel/node/src/proxy/x.rs",
                "a();\nuse aya::maps::HashMap;",
                (2, "crates"),
            ),
            (
                "ztunnel/node/src/proxy/x.rs",
                "fn f(key: &ztunnel_ebpf_types::Key) {}",
                (1, "crates"),
            ),
            (
                "ztunnel/mesh/src/x.rs",
                "use api::istio::workload;",
                (1, "crates"),
            ),
        ] {
            assert_eq!(rules(path, text), [expected], "{path}: {text}");
        }
    }

    #[test]
    fn allowed_code_has_no_finding() {
        for (path, text) in [
            ("ztunnel/node/src/bpf/x.rs", "unsafe { b() }"),
            (
                "ztunnel/tunnel/src/x.rs",
                "// unsafe\nlet x = \"unsafe\"; unsafe_name();",
            ),
            ("ztunnel/settings/src/environment.rs", "std::env::var(name)"),
            (
                "ztunnel/tunnel/src/x.rs",
                "#[allow(\n    dead_code,\n    reason = \"later\"\n)]\nfn f() {}",
            ),
            ("ztunnel/src/main.rs", "use anyhow::Result;"),
            (
                "ztunnel/tunnel/src/x.rs",
                "#[cfg(test)]\nmod tests {\n    x.expect(\"there\");\n}",
            ),
            ("ztunnel/src/tls/commonplace.rs", ""),
            ("ztunnel/node/src/bpf/x.rs", "use aya::maps::HashMap;"),
            ("ztunnel/upstream/src/ads/x.rs", "use api::istio::workload;"),
            (
                "ztunnel/mesh/src/x.rs",
                "use super::api::x; my_api::y(); // api::x",
            ),
            ("tests/src/x.rs", "use api::istio::workload;"),
        ] {
            assert_eq!(rules(path, text), [], "{path}: {text}");
        }
    }

    #[test]
    fn only_production_lines_count_for_the_size() {
        let code = "a();\n".repeat(LINES);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{code}}}\n");
        assert_eq!(
            rules("ztunnel/tunnel/src/x.rs", &format!("{code}{tests}")),
            []
        );
        let longer = format!("a();\n{code}{tests}");
        assert_eq!(
            rules("ztunnel/tunnel/src/x.rs", &longer),
            [(LINES + 1, "size")]
        );
    }
}
