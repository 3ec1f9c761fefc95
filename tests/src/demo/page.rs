//! The output of the demo: numbered steps, tables, and claims with their results.
//!
//! Lines have at most 112 columns with cells of the usual lengths. Colours are used on terminals only,
//! unless `NO_COLOR` is set (<https://no-color.org>).

use std::env;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::cleanup;

/// The width of a heading, in columns.
const WIDTH: usize = 110;

/// The use of colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colour {
    Plain,
    Ansi,
}

/// The emphasis of a piece of text.
#[derive(Debug, Clone, Copy)]
enum Emphasis {
    Heading,
    Good,
    Bad,
    Faint,
}

impl Emphasis {
    /// The parameters of ECMA-48's SGR.
    const fn code(self) -> &'static str {
        match self {
            Self::Heading => "1",
            Self::Good => "32",
            Self::Bad => "1;31",
            Self::Faint => "2",
        }
    }
}

/// The output, and the claims that did not hold.
#[derive(Debug)]
pub(crate) struct Page {
    colour: Colour,
    steps: usize,
    step: usize,
    held: usize,
    failed: Vec<String>,
    started: Instant,
}

impl Page {
    /// An empty page for this number of steps.
    pub(crate) fn new(steps: usize) -> Self {
        let disabled = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colour = if io::stdout().is_terminal() && !disabled {
            Colour::Ansi
        } else {
            Colour::Plain
        };
        Self {
            colour,
            steps,
            step: 0,
            held: 0,
            failed: Vec::new(),
            started: Instant::now(),
        }
    }

    /// Prints the heading of the next step.
    pub(crate) fn step(&mut self, title: &str) {
        self.step += 1;
        let heading = format!("[{}/{}] {title}", self.step, self.steps);
        let clock = format!("+{:.1} s", self.started.elapsed().as_secs_f64());
        let gap = WIDTH.saturating_sub(heading.chars().count() + clock.len());
        let heading = self.emphasise(Emphasis::Heading, &heading);
        let clock = self.emphasise(Emphasis::Faint, &clock);
        print(&format!("\n{heading}{}{clock}\n", " ".repeat(gap.max(2))));
    }

    /// Prints text, indented below its step.
    pub(crate) fn text(&self, text: &str) {
        for line in text.lines() {
            print(format!("      {line}").trim_end());
            print("\n");
        }
    }

    /// Prints a sentence, wrapped between words, with indented continuation lines.
    pub(crate) fn prose(&self, text: &str) {
        self.text(&wrap(text));
    }

    /// Prints rows in columns; the first row contains the headings.
    pub(crate) fn table(&self, rows: &[Vec<String>]) {
        let columns = columns(rows);
        let mut lines = columns.lines();
        if let Some(headings) = lines.next() {
            print(&format!(
                "      {}\n",
                self.emphasise(Emphasis::Faint, headings)
            ));
        }
        for line in lines {
            print(&format!("      {line}\n"));
        }
    }

    /// Prints a claim and whether it holds.
    pub(crate) fn claim(&mut self, holds: bool, claim: &str) {
        if holds {
            self.held += 1;
            let mark = self.emphasise(Emphasis::Good, "  ok");
            print(&format!("{mark}  {claim}\n"));
        } else {
            self.failed.push(claim.to_owned());
            let mark = self.emphasise(Emphasis::Bad, "FAIL");
            print(&format!("{mark}  {claim}\n"));
        }
    }

    /// Whether all claims so far hold.
    pub(crate) fn good(&self) -> bool {
        self.failed.is_empty()
    }

    /// Prints the last line.
    ///
    /// # Errors
    /// When claims did not hold; the error lists them.
    pub(crate) fn close(&self) -> Result<()> {
        ensure!(
            self.good(),
            "these claims of the demo do not hold:\n  - {}",
            self.failed.join("\n  - ")
        );
        let seconds = self.started.elapsed().as_secs_f64();
        let text = format!("All {} claims hold. It took {seconds:.1} s.", self.held);
        print(&format!("\n{}\n", self.emphasise(Emphasis::Heading, &text)));
        Ok(())
    }

    fn emphasise(&self, emphasis: Emphasis, text: &str) -> String {
        match self.colour {
            Colour::Plain => text.to_owned(),
            Colour::Ansi => format!("\x1b[{}m{text}\x1b[0m", emphasis.code()),
        }
    }
}

/// Prints and flushes, so that each step is visible while it runs. A closed output (`| head`) is not an
/// error, because the demo still has to clean up.
///
/// Prints nothing after a signal: later failures are caused by the removal of the mesh.
fn print(text: &str) {
    if cleanup::interrupted() {
        return;
    }
    let mut out = io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Aligns cells in columns of the width of their longest cell, two spaces apart.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width + 2 - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn wrap(text: &str) -> String {
    let limit = WIDTH - 10;
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + word.chars().count() < limit {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(format!("    {word}"));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(colour: Colour) -> Page {
        Page {
            colour,
            ..Page::new(1)
        }
    }

    #[test]
    fn columns_are_aligned_without_trailing_spaces() {
        let rows = [["a", "long cell"], ["longer", "b"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(columns(&rows), "a       long cell\nlonger  b\n");
        assert_eq!(columns(&[]), "");
    }

    #[test]
    fn prose_is_wrapped_between_words() {
        assert_eq!(wrap("a short one"), "a short one");
        let long = wrap(&"word ".repeat(40));
        assert_eq!(long.split_whitespace().count(), 40);
        assert!(long.lines().all(|line| line.len() <= WIDTH));
        assert!(long.lines().nth(1).unwrap().starts_with("    word"));
        assert_eq!(wrap(""), "");
    }

    #[test]
    fn plain_output_has_no_colours() {
        assert_eq!(page(Colour::Plain).emphasise(Emphasis::Bad, "x"), "x");
        assert_eq!(
            page(Colour::Ansi).emphasise(Emphasis::Good, "x"),
            "\x1b[32mx\x1b[0m"
        );
    }

    #[test]
    fn a_claim_that_does_not_hold_is_an_error() {
        let mut page = page(Colour::Plain);
        page.claim(true, "water is wet");
        assert!(page.close().is_ok());
        page.claim(false, "fire is cold");
        let outcome = page.close().unwrap_err().to_string();
        assert!(outcome.contains("fire is cold"), "{outcome}");
        assert!(!outcome.contains("water"), "{outcome}");
    }
}
