//! Escapes and bounds the texts of a log line, so that they cannot end the line, forge a field or
//! fill the disk.

use std::fmt::{self, Write};

/// The most bytes of one value; an ellipsis replaces the rest.
const VALUE_LIMIT: usize = 4096;

/// The characters that are escaped in addition to control characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// None: a bare word or a message.
    Plain,
    /// Quotes and backslashes, as inside a JSON string.
    Quoted,
}

/// A writer that escapes and bounds what is written through it.
pub(super) struct Escaped<'a> {
    out: &'a mut String,
    style: Style,
    left: usize,
}

impl<'a> Escaped<'a> {
    pub(super) const fn new(out: &'a mut String, style: Style) -> Self {
        Self {
            out,
            style,
            left: VALUE_LIMIT,
        }
    }
}

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.left == 0 {
            return Ok(());
        }
        let fits = text.floor_char_boundary(self.left);
        for c in text[..fits].chars() {
            match c {
                '"' | '\\' if self.style == Style::Quoted => {
                    self.out.push('\\');
                    self.out.push(c);
                }
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                c if c.is_control() => write!(self.out, "\\u{:04x}", u32::from(c))?,
                c => self.out.push(c),
            }
        }
        if fits < text.len() {
            self.out.push('…');
            self.left = 0;
        } else {
            self.left -= fits;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(style: Style, text: &str) -> String {
        let mut out = String::new();
        Escaped::new(&mut out, style).write_str(text).unwrap();
        out
    }

    #[test]
    fn a_value_cannot_end_its_line() {
        assert_eq!(
            escaped(Style::Plain, "a\nb\r\u{1b}[0m\u{85}"),
            "a\\nb\\r\\u001b[0m\\u0085"
        );
    }

    #[test]
    fn a_quoted_value_is_a_json_string() {
        let text = "say \"hi\"\\\n\t\u{1}é";
        let quoted = format!("\"{}\"", escaped(Style::Quoted, text));
        assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), text);
    }

    #[test]
    fn a_value_is_bounded() {
        let long = escaped(Style::Plain, &"é".repeat(10_000));
        assert!(
            long.len() <= VALUE_LIMIT + '…'.len_utf8() && long.ends_with('…'),
            "{}",
            long.len()
        );
    }
}
