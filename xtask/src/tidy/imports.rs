//! Who may import whom among the rooms of the proxy.

use super::Finding;
use super::source::Source;

const SOURCES: &str = "ztunnel/src/";

/// A room, and the rooms that it may import.
struct Room {
    name: &'static str,
    may: &'static [&'static str],
}

/// Rooms at the edge, which may import anything; nobody but they and `main` imports them.
const EDGE: [&str; 5] = ["node", "waypoint", "control", "cli", "config"];
/// The table of ARCHITECTURE.md.
const TABLE: [Room; 11] = [
    Room {
        name: "mesh",
        may: &[],
    },
    Room {
        name: "kernel",
        may: &["mesh"],
    },
    Room {
        name: "telemetry",
        may: &["mesh"],
    },
    Room {
        name: "tls",
        may: &["mesh"],
    },
    Room {
        name: "pods",
        may: &["mesh"],
    },
    Room {
        name: "hbone",
        may: &["mesh", "tls", "telemetry"],
    },
    Room {
        name: "dns",
        may: &["mesh", "telemetry"],
    },
    Room {
        name: "xds",
        may: &["mesh", "tls", "telemetry"],
    },
    Room {
        name: "ca",
        may: &["mesh", "tls", "telemetry"],
    },
    Room {
        name: "path",
        may: &["mesh", "kernel", "pods", "hbone", "tls", "dns", "telemetry"],
    },
    Room {
        name: "admin",
        may: &["mesh", "telemetry"],
    },
];
/// Crates that only one room may use: the kernel's types and its loader stay behind its door.
const BEHIND_A_DOOR: [(&str, &str); 3] = [
    ("aya", "kernel"),
    ("aya_log", "kernel"),
    ("ztunnel_ebpf_types", "kernel"),
];

pub(super) fn check(source: &Source<'_>, findings: &mut Vec<Finding>) {
    let Some(inside) = source.path.strip_prefix(SOURCES) else {
        return;
    };
    let room = room_of(inside);
    // The fuzz targets' list of doors is compiled for nobody else.
    if matches!(room, "main" | "lib" | "fuzzing") {
        return;
    }
    let mut report = |byte: usize, found: String, way_out: &'static str| {
        findings.push(Finding {
            path: source.path.to_owned(),
            line: source.line_of(byte),
            rule: "imports",
            found,
            way_out,
        });
    };
    let allowed = TABLE
        .iter()
        .find(|entry| entry.name == room)
        .map(|entry| entry.may);
    let edge = EDGE.contains(&room);
    if allowed.is_none() && !edge {
        report(
            0,
            format!("`{room}` is no room of the import table"),
            "add it to ARCHITECTURE.md and to xtask/src/tidy/imports.rs, or move the file into a room",
        );
        return;
    }
    let code = source.production_code();
    for (byte, target) in imported(code, depth(inside)) {
        let free = edge || target == room || !is_room(target);
        if !free && !allowed.is_some_and(|may| may.contains(&target)) {
            report(
                byte,
                format!("`{room}` imports `{target}`"),
                "take what you need as a parameter or a trait of your own, or move the code to the room that may",
            );
        }
    }
    for (name, owner) in BEHIND_A_DOOR {
        if room != owner
            && let Some(byte) = find_path(code, name)
        {
            report(
                byte,
                format!("`{room}` uses the crate `{name}`"),
                "only `kernel` knows the kernel's types; let it offer what you need",
            );
        }
    }
}

fn is_room(name: &str) -> bool {
    EDGE.contains(&name) || TABLE.iter().any(|entry| entry.name == name)
}

/// `path/outbound.rs` and `path.rs` belong to `path`.
fn room_of(inside: &str) -> &str {
    inside
        .split('/')
        .next()
        .unwrap_or(inside)
        .trim_end_matches(".rs")
}

/// How many modules deep a file is: 1 for `path/mod.rs`, 2 for `path/outbound.rs`.
fn depth(inside: &str) -> usize {
    let module = inside.trim_end_matches(".rs").trim_end_matches("/mod");
    module.split('/').count()
}

/// Names behind `crate::` or behind as many `super::` as lead there, with where they stand.
fn imported(code: &str, depth: usize) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        if !follows_word(code, start) {
            top_names(code, start + "crate::".len(), &mut found);
        }
    }
    let climb = "super::".repeat(depth);
    for (start, _) in code.match_indices(&climb) {
        let after = start + climb.len();
        let first = !follows_word(code, start) && !code[..start].ends_with("::");
        if first && !code[after..].starts_with("super::") {
            top_names(code, after, &mut found);
        }
    }
    found
}

/// The first segment of a path at `start`, or of each path in a group in braces.
fn top_names<'a>(code: &'a str, start: usize, found: &mut Vec<(usize, &'a str)>) {
    let rest = &code[start..];
    if !rest.starts_with('{') {
        found.push((start, word(rest)));
        return;
    }
    let mut nesting = 0usize;
    let mut expecting = false;
    for (at, character) in rest.char_indices() {
        match character {
            '{' => {
                nesting += 1;
                expecting = nesting == 1;
            }
            '}' if nesting == 1 => return,
            '}' => nesting -= 1,
            ',' => expecting = nesting == 1,
            other if expecting && !other.is_whitespace() => {
                found.push((start + at, word(&rest[at..])));
                expecting = false;
            }
            _ => {}
        }
    }
}

fn word(text: &str) -> &str {
    let end = text
        .find(|character: char| !is_word(character))
        .unwrap_or(text.len());
    &text[..end]
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn follows_word(code: &str, at: usize) -> bool {
    code[..at]
        .chars()
        .next_back()
        .is_some_and(|before| is_word(before) || before == '$')
}

/// Where a path that begins with `name` stands: `use name…` or `name::`.
fn find_path(code: &str, name: &str) -> Option<usize> {
    code.match_indices(name)
        .find(|(at, _)| {
            let after = &code[at + name.len()..];
            let before = &code[..*at];
            !follows_word(code, *at)
                && !before.ends_with("::")
                && (after.starts_with("::")
                    || before.trim_end().ends_with("use") && !after.starts_with(is_word))
        })
        .map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check(&Source::new(path, text, &[]), &mut findings);
        findings
            .into_iter()
            .map(|finding| format!("{}: {}", finding.line, finding.found))
            .collect()
    }

    #[test]
    fn rooms_import_what_the_table_allows() {
        for (path, text) in [
            (
                "ztunnel/src/path/route.rs",
                "use crate::mesh::Snapshot;\nuse crate::hbone;",
            ),
            (
                "ztunnel/src/node.rs",
                "use crate::{path, xds};\nuse crate::config::Settings;",
            ),
            (
                "ztunnel/src/tls/store.rs",
                "use super::super::mesh::Identity;\nuse super::verify;",
            ),
            ("ztunnel/src/kernel/mod.rs", "use aya::Ebpf;"),
            (
                "ztunnel/src/hbone/pool.rs",
                "// crate::path is the caller\nuse crate::mesh::X;",
            ),
            (
                "ztunnel/src/mesh/x.rs",
                "macro_rules! m { () => { $crate::path::x() } }",
            ),
            ("tests/src/lib.rs", "use crate::anything;"),
        ] {
            assert_eq!(findings(path, text), Vec::<String>::new(), "{path}");
        }
    }

    #[test]
    fn rooms_do_not_import_what_it_forbids() {
        for (path, text, found) in [
            (
                "ztunnel/src/mesh/x.rs",
                "\nuse crate::tls::Store;",
                "2: `mesh` imports `tls`",
            ),
            (
                "ztunnel/src/path/x.rs",
                "use crate::{mesh::A, xds::B};",
                "1: `path` imports `xds`",
            ),
            (
                "ztunnel/src/tls/mod.rs",
                "use super::hbone::Pool;",
                "1: `tls` imports `hbone`",
            ),
            (
                "ztunnel/src/tls/x.rs",
                "fn f() { crate::path::run() }",
                "1: `tls` imports `path`",
            ),
            (
                "ztunnel/src/tls/x.rs",
                "use super::super::ca;",
                "1: `tls` imports `ca`",
            ),
            (
                "ztunnel/src/pods/x.rs",
                "use crate::config::Pod;",
                "1: `pods` imports `config`",
            ),
            (
                "ztunnel/src/pods/x.rs",
                "use aya::maps::Map;",
                "1: `pods` uses the crate `aya`",
            ),
            (
                "ztunnel/src/odd/x.rs",
                "",
                "1: `odd` is no room of the import table",
            ),
        ] {
            assert_eq!(findings(path, text), [found], "{path}");
        }
    }

    #[test]
    fn tests_of_a_room_may_import_anything() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    use crate::ca::local::LocalCa;\n}\n";
        assert_eq!(findings("ztunnel/src/tls/x.rs", text), Vec::<String>::new());
        assert_eq!(
            findings("ztunnel/src/tls/x/tests.rs", "use crate::ca;"),
            Vec::<String>::new()
        );
    }
}
