//! A Rust source file prepared for rules: comments and string literals are blanked out, and the
//! test code is separated.

/// A source file.
pub(super) struct Source<'a> {
    /// Its path from the workspace's root.
    pub(super) path: &'a str,
    /// The text of the file.
    text: &'a str,
    /// The text with comments and string literals blanked out.
    code: String,
    /// The number of lines before the file's test module.
    production: usize,
}

impl<'a> Source<'a> {
    /// `tests` are the modules that are compiled for tests only, see [`test_modules`].
    pub(super) fn new(path: &'a str, text: &'a str, tests: &[String]) -> Self {
        let code = blank(text);
        let production = if is_test_file(path, tests) {
            0
        } else {
            production_lines(&code)
        };
        Self {
            path,
            text,
            code,
            production,
        }
    }

    /// The lines of production code, with their numbers from 1.
    pub(super) fn production(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines().take(self.production)
    }

    /// The lines of production code with comments and string literals.
    pub(super) fn production_text(&self) -> impl Iterator<Item = (usize, &'a str)> {
        (1..).zip(self.text.lines()).take(self.production)
    }

    /// All lines of code, with their numbers from 1.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.code.lines())
    }

    /// The production code as one text.
    pub(super) fn production_code(&self) -> &str {
        let end = self
            .code
            .split_inclusive('\n')
            .take(self.production)
            .map(str::len)
            .sum();
        self.code.get(..end).unwrap_or_default()
    }

    /// The number of lines of the production part, including comments.
    pub(super) fn production_count(&self) -> usize {
        self.production
    }
}

/// Whether a file is a test module or a part of one.
fn is_test_file(path: &str, tests: &[String]) -> bool {
    let declared = tests.iter().any(|module| {
        path.strip_prefix(module.as_str())
            .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    });
    declared || path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// The number of lines before the first inline test module.
fn production_lines(code: &str) -> usize {
    let lines: Vec<_> = code.lines().map(str::trim).collect();
    lines
        .iter()
        .zip(lines.iter().skip(1))
        .position(|(line, next)| {
            *line == "#[cfg(test)]" && next.starts_with("mod ") && next.ends_with('{')
        })
        .unwrap_or(lines.len())
}

/// The paths, without `.rs`, of the modules that a file declares for tests only.
pub(super) fn test_modules(path: &str, text: &str) -> Vec<String> {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let file = path.trim_end_matches(".rs");
    let directory = ["/mod", "/lib", "/main"]
        .into_iter()
        .find_map(|root| file.strip_suffix(root))
        .unwrap_or(file);
    lines
        .iter()
        .zip(lines.iter().skip(1))
        .filter(|(line, _)| **line == "#[cfg(test)]")
        .filter_map(|(_, next)| next.strip_suffix(';')?.split_once("mod "))
        .map(|(_, name)| format!("{directory}/{name}"))
        .collect()
}

/// Replaces comments and string literals with spaces and keeps line ends.
fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    let mut previous = ' ';
    while let Some(character) = rest.chars().next() {
        let length = match character {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => quoted(rest),
            'r' if !is_word(previous) => raw(rest).unwrap_or(0),
            '\'' => character_literal(rest),
            _ => 0,
        };
        if length == 0 {
            code.push(character);
            rest = &rest[character.len_utf8()..];
        } else {
            let (blanked, after) = rest.split_at(length);
            let spaces = blanked.chars();
            code.extend(spaces.map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = after;
        }
        previous = character;
    }
    code
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn raw(text: &str) -> Option<usize> {
    let hashes = text[1..].bytes().take_while(|byte| *byte == b'#').count();
    let open = 1 + hashes;
    if text.as_bytes().get(open) != Some(&b'"') {
        return None;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    Some(
        text[open + 1..]
            .find(&close)
            .map_or(text.len(), |at| open + 1 + at + close.len()),
    )
}

/// The length of a character literal, 0 for a lifetime.
fn character_literal(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => text[2..].find('\'').map_or(0, |at| {
            // In '\'' the first quotation mark is the escaped one.
            let end = 2 + at + 1;
            if at == 0 { end + 1 } else { end }
        }),
        Some(_) => match characters.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_string_literals_are_blanked_and_code_is_kept() {
        for (text, code) in [
            ("let a = 1; // unsafe", "let a = 1;          "),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"let t = "un\"safe"; x"#, "let t =           ; x"),
            (r##"let t = r#"a"b"#; x"##, "let t =         ; x"),
            ("let c = '\"'; x", "let c =    ; x"),
            (r"let c = '\''; x", "let c =     ; x"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
            ("for r in x", "for r in x"),
        ] {
            assert_eq!(blank(text), code, "{text}");
        }
    }

    #[test]
    fn the_test_module_is_not_production_code() {
        let text = "fn a() {}\n\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n";
        let source = Source::new("ztunnel/src/x.rs", text, &[]);
        assert_eq!(source.production_count(), 2);
        assert!(!source.production_code().contains("fn b"));
        assert_eq!(
            Source::new("ztunnel/src/x/tests.rs", text, &[]).production_count(),
            0
        );
    }

    #[test]
    fn test_modules_are_declared_by_their_parent() {
        let text = "mod a;\n#[cfg(test)]\npub(crate) mod testing;\nmod b;\n";
        assert_eq!(
            test_modules("ztunnel/src/tls/mod.rs", text),
            ["ztunnel/src/tls/testing"]
        );
        assert_eq!(
            test_modules("ztunnel/src/tls/x.rs", text),
            ["ztunnel/src/tls/x/testing"]
        );
        let tests = test_modules("ztunnel/src/tls/mod.rs", text);
        let count = |path| Source::new(path, text, &tests).production_count();
        assert_eq!(count("ztunnel/src/tls/testing.rs"), 0);
        assert_eq!(count("ztunnel/src/tls/testing/keys.rs"), 0);
        assert_eq!(count("ztunnel/src/tls/mod.rs"), 4);
    }
}
