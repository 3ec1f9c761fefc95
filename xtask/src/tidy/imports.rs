//! Parses the imports of a source file and finds the files that define the imported names.

use std::collections::{BTreeMap, BTreeSet};

use super::source::Source;

/// The largest number of re-exports that are followed; more would be a loop.
const DEPTH: usize = 16;

/// The modules of one crate, by module path; `[]` is the crate's root.
#[derive(Default)]
pub(super) struct Modules {
    by_path: BTreeMap<Vec<String>, Module>,
}

struct Module {
    file: String,
    imports: Vec<Import>,
    /// Qualified paths in code outside `use` declarations.
    paths: Vec<Vec<String>>,
    definitions: BTreeSet<String>,
}

/// One name of a `use` declaration.
#[derive(Debug, PartialEq, Eq)]
struct Import {
    path: Vec<String>,
    /// The local name; `None` for `*`.
    name: Option<String>,
    /// Whether the import is a re-export.
    exported: bool,
}

/// The target of a path.
enum Target<'a> {
    Module(&'a [String]),
    Item(&'a [String]),
}

impl<'a> Target<'a> {
    const fn module(&self) -> &'a [String] {
        match self {
            Self::Module(path) | Self::Item(path) => path,
        }
    }
}

impl Modules {
    /// Adds a file. `inside` is its path below the crate's `src`.
    pub(super) fn add(&mut self, inside: &str, source: &Source<'_>) {
        let tokens = tokens(source.production_code());
        let (imports, paths) = imports_and_paths(&tokens);
        let module = Module {
            file: source.path.to_owned(),
            imports,
            paths,
            definitions: definitions(&tokens),
        };
        self.by_path.insert(module_path(inside), module);
    }

    /// For each file, the files that define its imports.
    pub(super) fn arrows(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut arrows: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (path, module) in &self.by_path {
            let own = module.imports.iter().filter(|import| !import.exported);
            let wanted = own.map(|import| &import.path).chain(&module.paths);
            let files = wanted
                .filter_map(|wanted| self.resolve(path, wanted, 0))
                .filter_map(|target| self.by_path.get(target.module()))
                .map(|target| target.file.as_str())
                .filter(|file| *file != module.file);
            arrows.entry(&module.file).or_default().extend(files);
        }
        arrows
    }

    /// Resolves a path in the module `from`; `None` if it leads to another crate.
    fn resolve<'a>(
        &'a self,
        from: &'a [String],
        path: &'a [String],
        depth: usize,
    ) -> Option<Target<'a>> {
        if depth > DEPTH {
            return None;
        }
        let mut at = from;
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => (at, rest) = (&[], &path[1..]),
            "self" => rest = &path[1..],
            "super" => {
                while let Some((first, after)) = rest.split_first()
                    && first == "super"
                {
                    at = at.split_last()?.1;
                    rest = after;
                }
            }
            first => {
                let module = self.by_path.get(from)?;
                let imported = module
                    .imports
                    .iter()
                    .any(|import| import.name.as_deref() == Some(first) && import.path != path);
                if self.child(from, first).is_none() && !imported {
                    return None;
                }
            }
        }
        for (position, name) in rest.iter().enumerate() {
            if let Some(child) = self.child(at, name) {
                at = child;
                continue;
            }
            match self.imported(at, name, path, depth)? {
                Target::Module(module) if position + 1 < rest.len() => at = module,
                found => return Some(found),
            }
        }
        Some(Target::Module(at))
    }

    /// Resolves a name in a module that has no child of this name.
    fn imported<'a>(
        &'a self,
        at: &'a [String],
        name: &str,
        asking: &[String],
        depth: usize,
    ) -> Option<Target<'a>> {
        let module = self.by_path.get(at)?;
        if module.definitions.contains(name) {
            return Some(Target::Item(at));
        }
        let named = module
            .imports
            .iter()
            .find(|import| import.name.as_deref() == Some(name) && import.path != asking);
        if let Some(import) = named {
            return self.resolve(at, &import.path, depth + 1);
        }
        let globs = module.imports.iter().filter(|import| import.name.is_none());
        for glob in globs {
            if let Some(Target::Module(inside)) = self.resolve(at, &glob.path, depth + 1)
                && inside != at
                && let Some(found) = self.imported(inside, name, &glob.path, depth + 1)
            {
                return Some(found);
            }
        }
        Some(Target::Item(at))
    }

    /// The path of a child of a module.
    fn child<'a>(&'a self, parent: &[String], name: &str) -> Option<&'a [String]> {
        let mut path = parent.to_vec();
        path.push(name.to_owned());
        self.by_path
            .get_key_value(&path)
            .map(|(path, _)| path.as_slice())
    }
}

/// The module path of a file below `src`.
fn module_path(inside: &str) -> Vec<String> {
    let mut parts: Vec<_> = inside
        .trim_end_matches(".rs")
        .split('/')
        .map(str::to_owned)
        .collect();
    let root = parts.len() == 1 && matches!(parts[0].as_str(), "lib" | "main");
    if root || parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// Splits code into words, `::`, and single characters.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let word = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        let length = if word > 0 {
            word
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        let (token, after) = rest.split_at(length);
        tokens.push(token);
        rest = after.trim_start();
    }
    tokens
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

fn imports_and_paths(tokens: &[&str]) -> (Vec<Import>, Vec<Vec<String>>) {
    let (mut imports, mut paths) = (Vec::new(), Vec::new());
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let before = at.checked_sub(1).and_then(|before| tokens.get(before));
        let begins = before.is_none_or(|before| [";", "{", "}", "]", ")", "pub"].contains(before));
        if *token == "use" && begins {
            let mut tree = Tree {
                tokens,
                at: at + 1,
                exported: matches!(before, Some(&"pub" | &")")),
                imports: &mut imports,
            };
            tree.read(&[]);
            at = tree.at.max(at + 1);
        } else if *token == "pub" && tokens.get(at + 1..at + 3) == Some(&["(", "in"][..]) {
            // A visibility such as `pub(in crate::a)` is not an import.
            at += tokens[at..]
                .iter()
                .take_while(|token| **token != ")")
                .count();
        } else if is_name(token) && before != Some(&"::") && tokens.get(at + 1) == Some(&"::") {
            let mut path = vec![(*token).to_owned()];
            at += 1;
            while tokens.get(at) == Some(&"::")
                && let Some(name) = tokens.get(at + 1).filter(|name| is_name(name))
            {
                path.push((*name).to_owned());
                at += 2;
            }
            paths.push(path);
        } else {
            at += 1;
        }
    }
    (imports, paths)
}

/// Parses one `use` declaration.
struct Tree<'a, 'b> {
    tokens: &'a [&'a str],
    at: usize,
    exported: bool,
    imports: &'b mut Vec<Import>,
}

impl<'a> Tree<'a, '_> {
    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).copied().unwrap_or(";")
    }

    fn next(&mut self) -> &'a str {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn read(&mut self, prefix: &[String]) {
        let mut path = prefix.to_vec();
        loop {
            match self.next() {
                "{" => {
                    while !matches!(self.peek(), "}" | ";") {
                        self.read(&path);
                        if self.peek() == "," {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                "*" => return self.add(path, None),
                "self" if !path.is_empty() => {}
                name if is_name(name) => path.push(name.to_owned()),
                _ => return,
            }
            if self.peek() != "::" {
                break;
            }
            self.at += 1;
        }
        let name = if self.peek() == "as" {
            self.at += 1;
            self.next().to_owned()
        } else {
            path.last().cloned().unwrap_or_default()
        };
        self.add(path, Some(name));
    }

    fn add(&mut self, path: Vec<String>, name: Option<String>) {
        self.imports.push(Import {
            path,
            name,
            exported: self.exported,
        });
    }
}

/// The names of the items that a file defines.
fn definitions(tokens: &[&str]) -> BTreeSet<String> {
    const KINDS: [&str; 9] = [
        "fn",
        "struct",
        "enum",
        "trait",
        "type",
        "const",
        "static",
        "union",
        "macro_rules",
    ];
    tokens
        .windows(2)
        .filter(|pair| KINDS.contains(&pair[0]) && is_name(pair[1]))
        .map(|pair| pair[1].to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(code: &str) -> Vec<String> {
        imports_and_paths(&tokens(code))
            .0
            .into_iter()
            .map(|import| {
                let name = import.name.unwrap_or_else(|| "*".to_owned());
                format!("{} as {name}", import.path.join("::"))
            })
            .collect()
    }

    #[test]
    fn a_use_declaration_is_parsed_into_names() {
        assert_eq!(
            imports("use super::{a::{self, B}, c as d, e::*};\npub(super) use f::G;\nuse ::h::I;"),
            [
                "super::a as a",
                "super::a::B as B",
                "super::c as d",
                "super::e as *",
                "f::G as G",
            ]
        );
    }

    #[test]
    fn qualified_paths_are_found_outside_imports() {
        let code = "use a::b;\nfn f() { super::c::d(x); g::H::new(); i }";
        let paths = imports_and_paths(&tokens(code)).1;
        assert_eq!(paths, [vec!["super", "c", "d"], vec!["g", "H", "new"]]);
    }

    #[test]
    fn a_visibility_is_no_import() {
        let code = "pub(in crate::a) fn f() { b::c() }\npub(in super::d) use e::F;";
        let (imported, paths) = imports_and_paths(&tokens(code));
        assert_eq!(paths, [vec!["b", "c"]]);
        assert_eq!(imported.len(), 1);
        assert!(imported[0].exported);
    }

    #[test]
    fn the_module_path_follows_from_the_file_path() {
        for (inside, expected) in [
            ("lib.rs", ""),
            ("main.rs", ""),
            ("a.rs", "a"),
            ("a/mod.rs", "a"),
            ("a/b.rs", "a::b"),
        ] {
            assert_eq!(module_path(inside).join("::"), expected, "{inside}");
        }
    }
}
