//! Import cycles between the files of one crate.
//!
//! An arrow goes from a file to the file that defines what it imports: where a module only
//! re-exports a name, the arrow goes to the file behind it. A module and its children may import
//! each other; in a cycle of more than [`LONGEST`] files no file can be understood alone.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::imports::Modules;
use super::source::Source;

/// The most files of an allowed cycle.
const LONGEST: usize = 3;

type Arrows<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

pub(super) fn check(sources: &[Source<'_>], findings: &mut Vec<Finding>) {
    let mut crates: BTreeMap<&str, Modules> = BTreeMap::new();
    for source in sources {
        if let Some((name, inside)) = crate_and_file(source.path)
            && source.production_count() > 0
        {
            crates.entry(name).or_default().add(inside, source);
        }
    }
    for modules in crates.values() {
        let arrows = modules.arrows();
        for group in strongly_connected(&arrows) {
            if let Some(cycle) = long_cycle(&arrows, &group) {
                findings.push(finding(cycle[0], cycle_text(&cycle)));
            }
        }
    }
}

fn finding(path: &str, found: String) -> Finding {
    Finding {
        path: path.to_owned(),
        line: 1,
        rule: "cycles",
        found,
        way_out: "move what both sides use into a file of its own",
    }
}

fn cycle_text(cycle: &[&str]) -> String {
    let count = cycle.len();
    let files = cycle.join(" -> ");
    format!("a cycle of {count} files, {LONGEST} are allowed: {files}")
}

/// The crate's folder, and the path below its `src`, of a file of the product.
fn crate_and_file(path: &str) -> Option<(&str, &str)> {
    let (name, inside) = path.split_once("/src/")?;
    let ours = name == "ztunnel" || name.starts_with("ztunnel/");
    ours.then_some((name, inside))
}

/// Groups of files that all reach each other.
fn strongly_connected<'a>(arrows: &Arrows<'a>) -> Vec<BTreeSet<&'a str>> {
    let reach: BTreeMap<_, _> = arrows
        .keys()
        .map(|start| (*start, reachable(arrows, start)))
        .collect();
    let mut grouped = BTreeSet::new();
    let mut groups = Vec::new();
    for (start, reached) in &reach {
        if !grouped.insert(*start) {
            continue;
        }
        let mut group: BTreeSet<_> = reached
            .iter()
            .filter(|file| reach.get(*file).is_some_and(|back| back.contains(start)))
            .copied()
            .collect();
        group.insert(start);
        grouped.extend(group.iter().copied());
        groups.push(group);
    }
    groups
}

fn reachable<'a>(arrows: &Arrows<'a>, start: &str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut waiting: Vec<_> = arrows.get(start).into_iter().flatten().copied().collect();
    while let Some(file) = waiting.pop() {
        if reached.insert(file) {
            waiting.extend(arrows.get(file).into_iter().flatten());
        }
    }
    reached
}

/// The shortest cycle that is longer than allowed and passes no file twice.
fn long_cycle<'a>(arrows: &Arrows<'a>, group: &BTreeSet<&'a str>) -> Option<Vec<&'a str>> {
    (LONGEST + 1..=group.len()).find_map(|length| {
        group.iter().find_map(|start| {
            let mut path = vec![*start];
            completes(arrows, group, length, &mut path).then_some(path)
        })
    })
}

/// Extends the path to a cycle of this length; its first file is the smallest of the cycle, so
/// that each cycle is looked for once.
fn completes<'a>(
    arrows: &Arrows<'a>,
    group: &BTreeSet<&'a str>,
    length: usize,
    path: &mut Vec<&'a str>,
) -> bool {
    let (Some(first), Some(last)) = (path.first().copied(), path.last().copied()) else {
        return false;
    };
    let next = arrows.get(last).into_iter().flatten();
    if path.len() == length {
        return next.into_iter().any(|file| *file == first);
    }
    for file in next {
        if *file > first && group.contains(file) && !path.contains(file) {
            path.push(file);
            if completes(arrows, group, length, path) {
                return true;
            }
            path.pop();
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<_> = files
            .iter()
            .map(|(path, text)| Source::new(path, text, &[]))
            .collect();
        let mut findings = Vec::new();
        check(&sources, &mut findings);
        findings.into_iter().map(|finding| finding.found).collect()
    }

    /// Four files, each of which imports the next.
    const RING: [(&str, &str); 5] = [
        ("ztunnel/x/src/lib.rs", "mod a; mod b; mod c; mod d;"),
        ("ztunnel/x/src/a.rs", "use super::b::B; pub struct A;"),
        ("ztunnel/x/src/b.rs", "use crate::c::C; pub struct B;"),
        (
            "ztunnel/x/src/c.rs",
            "fn c() -> super::d::D { D }\npub struct C;",
        ),
        (
            "ztunnel/x/src/d.rs",
            "use super::a::{self, A}; pub struct D;",
        ),
    ];

    #[test]
    fn a_cycle_of_four_files_is_found() {
        let found = found(&RING);
        assert_eq!(
            found,
            [
                "a cycle of 4 files, 3 are allowed: ztunnel/x/src/a.rs -> ztunnel/x/src/b.rs -> \
              ztunnel/x/src/c.rs -> ztunnel/x/src/d.rs"
            ]
        );
    }

    #[test]
    fn a_cycle_of_three_files_is_allowed() {
        let mut ring = RING;
        ring[4].1 = "use super::b::B; pub struct D;";
        assert!(found(&ring).is_empty());
    }

    #[test]
    fn an_import_through_a_reexport_leads_to_the_file_that_defines_the_name() {
        // The root knows all of its children; they know each other only through it.
        let star = [
            (
                "ztunnel/x/src/lib.rs",
                "mod a; mod b; mod c; mod d;\npub use a::A;\npub use b::*;\npub use c::C as D;",
            ),
            ("ztunnel/x/src/a.rs", "use super::{B, D}; pub struct A;"),
            ("ztunnel/x/src/b.rs", "use super::D; pub struct B;"),
            ("ztunnel/x/src/c.rs", "pub struct C;"),
            ("ztunnel/x/src/d.rs", "use crate::A;"),
        ];
        let mut modules = Modules::default();
        for (path, text) in &star {
            let (_, inside) = crate_and_file(path).unwrap();
            modules.add(inside, &Source::new(path, text, &[]));
        }
        let arrows = modules.arrows();
        let to = |file: &str| -> Vec<String> {
            let files = arrows[format!("ztunnel/x/src/{file}.rs").as_str()].iter();
            files
                .map(|file| file["ztunnel/x/src/".len()..].to_owned())
                .collect()
        };
        assert_eq!(to("a"), ["b.rs", "c.rs"]);
        assert_eq!(to("b"), ["c.rs"]);
        assert_eq!(to("d"), ["a.rs"]);
        assert!(to("lib").is_empty(), "re-exports are no arrows");
    }

    #[test]
    fn tests_declarations_and_other_crates_are_no_arrows() {
        let files = [
            (
                "ztunnel/x/src/lib.rs",
                "mod a;\npub struct Root;\n#[cfg(test)]\nmod tests {\n    use super::a::A;\n}\n",
            ),
            (
                "ztunnel/x/src/a.rs",
                "use super::Root;\nuse std::fmt;\nuse mesh::Workload;\npub struct A;",
            ),
        ];
        let mut modules = Modules::default();
        for (path, text) in &files {
            modules.add(
                crate_and_file(path).unwrap().1,
                &Source::new(path, text, &[]),
            );
        }
        let arrows = modules.arrows();
        assert!(arrows["ztunnel/x/src/lib.rs"].is_empty());
        assert_eq!(
            arrows["ztunnel/x/src/a.rs"].iter().collect::<Vec<_>>(),
            [&"ztunnel/x/src/lib.rs"]
        );
    }
}
