//! The outcome of a target's run, parsed from libFuzzer's output.

use std::fmt::Write as _;
use std::fs;
use std::iter;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The outcome of a target's run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) target: String,
    /// The number of inputs.
    executions: u64,
    /// Inputs per second.
    rate: u64,
    /// The number of reached edges of the program.
    coverage: u64,
    /// The number of inputs in the corpus.
    corpus: u64,
    /// The failure; empty if there was none.
    fault: String,
    /// The path of the input that caused the failure.
    artifact: Option<String>,
    /// The input in Base64, for readers of the printed output.
    base64: Option<String>,
    log: String,
}

/// The number of printed lines of a panic's message.
const MESSAGE_LINES: usize = 3;
/// The largest number of printed characters of a failure.
const FAULT_MAX: usize = 400;

impl Outcome {
    /// Parses the log of a target that has ended.
    pub(super) fn read(target: &str, succeeded: bool, log: &Path) -> Result<Self> {
        let bytes = fs::read(log).with_context(|| log.display().to_string())?;
        let mut outcome = Self::of(target, succeeded, &String::from_utf8_lossy(&bytes));
        outcome.log = log.display().to_string();
        Ok(outcome)
    }

    fn of(target: &str, succeeded: bool, text: &str) -> Self {
        let mut outcome = Self {
            target: target.to_owned(),
            ..Self::default()
        };
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let after = |name: &str| {
                let rest = line.split_once(name)?.1.trim_start();
                let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
                digits.parse().ok()
            };
            if line.starts_with('#') {
                outcome.coverage = after("cov: ").unwrap_or(outcome.coverage);
                outcome.corpus = after("corp: ").unwrap_or(outcome.corpus);
            }
            let executed = after("stat::number_of_executed_units:");
            outcome.executions = executed.unwrap_or(outcome.executions);
            outcome.rate = after("stat::average_exec_per_sec:").unwrap_or(outcome.rate);
            if let Some((_, path)) = line.split_once("Test unit written to ") {
                outcome.artifact = Some(path.trim().to_owned());
            }
            let first = ["panicked at ", "ERROR: "]
                .iter()
                .any(|mark| line.contains(mark));
            if !succeeded && first && outcome.fault.is_empty() {
                let message = lines.clone().take(MESSAGE_LINES);
                let message = message.take_while(|line| *line != "stack backtrace:");
                let parts: Vec<&str> = iter::once(line).chain(message).map(str::trim).collect();
                outcome.fault = parts.join(" | ").chars().take(FAULT_MAX).collect();
            }
            if let Some(base64) = line.strip_prefix("Base64: ") {
                outcome.base64 = Some(base64.to_owned());
            }
        }
        if !succeeded && outcome.fault.is_empty() {
            "the target ended with an error".clone_into(&mut outcome.fault);
        }
        // A run without inputs has tested nothing.
        if succeeded && outcome.executions == 0 {
            "the target has tried no input".clone_into(&mut outcome.fault);
        }
        outcome
    }

    pub(super) fn passed(&self) -> bool {
        self.fault.is_empty()
    }

    /// A line about a run that has ended.
    pub(super) fn line(&self, took: Duration) -> String {
        let (name, executions, seconds) = (&self.target, self.executions, took.as_secs());
        if self.passed() {
            return format!("{name}: {executions} executions in {seconds} s");
        }
        format!("{name}: FAILED after {seconds} s: {}", self.fault)
    }
}

/// The results as a table, with a command that reproduces each failure.
pub(super) fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    let mut row = |cells: [&str; 6]| {
        let [target, executions, rate, coverage, corpus, result] = cells;
        // Writing to a String does not fail.
        let _written = writeln!(
            text,
            "{target:<24}{executions:>12}{rate:>9}{coverage:>10}{corpus:>8}  {result}"
        );
    };
    row([
        "target",
        "executions",
        "exec/s",
        "coverage",
        "corpus",
        "result",
    ]);
    for each in outcomes {
        let numbers = [each.executions, each.rate, each.coverage, each.corpus];
        let [executions, rate, coverage, corpus] = numbers.map(|number| number.to_string());
        let result = if each.passed() { "ok" } else { "FAILED" };
        row([&each.target, &executions, &rate, &coverage, &corpus, result]);
    }
    for each in outcomes.iter().filter(|outcome| !outcome.passed()) {
        let (target, fault, log) = (&each.target, &each.fault, &each.log);
        let _written = writeln!(text, "\n{target}: {fault}\n  log: {log}");
        if let Some(artifact) = &each.artifact {
            let _written = writeln!(
                text,
                "  input: {artifact}\n  reproduce: {}",
                reproduce(target, artifact)
            );
        }
        if let Some(base64) = &each.base64 {
            let _written = writeln!(text, "  the input in Base64: {base64}");
        }
    }
    text
}

/// The command that runs one input and prints a readable trace.
fn reproduce(target: &str, artifact: &str) -> String {
    format!(
        "RUSTC_BOOTSTRAP=1 target/tools/bin/cargo-fuzz fuzz run --fuzz-dir tests/fuzz --target-dir \
         target/fuzz {target} {artifact}"
    )
}

/// The results as JSON.
pub(super) fn json(outcomes: &[Outcome]) -> String {
    let objects: Vec<_> = outcomes.iter().map(object).collect();
    format!("[{}]", objects.join(","))
}

fn object(outcome: &Outcome) -> String {
    let artifact = outcome
        .artifact
        .as_deref()
        .map_or_else(|| "null".to_owned(), quoted);
    format!(
        "{{\"target\":{},\"executions\":{},\"executionsPerSecond\":{},\"coverage\":{},\
         \"corpus\":{},\"passed\":{},\"fault\":{},\"artifact\":{artifact},\"log\":{}}}",
        quoted(&outcome.target),
        outcome.executions,
        outcome.rate,
        outcome.coverage,
        outcome.corpus,
        outcome.passed(),
        quoted(&outcome.fault),
        quoted(&outcome.log),
    )
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "#2\tINITED cov: 7 ft: 7 corp: 1/1b exec/s: 0 rss: 40Mb\n\
        #900\tDONE   cov: 812 ft: 3021 corp: 204/9Kb lim: 500 exec/s: 450 rss: 80Mb\n\
        stat::number_of_executed_units: 900\n\
        stat::average_exec_per_sec:     450\n";

    #[test]
    fn the_last_numbers_of_the_log_are_shown() {
        let outcome = Outcome::of("a", true, GOOD);
        assert!(outcome.passed());
        assert_eq!((outcome.executions, outcome.rate), (900, 450));
        assert_eq!((outcome.coverage, outcome.corpus), (812, 204));
    }

    #[test]
    fn a_failure_names_its_input_and_the_command_that_reproduces_it() {
        let text = "thread '<unnamed>' panicked at src/a.rs:1:2:\n\
            assertion failed\n\
            stack backtrace:\n\
            ==1== ERROR: libFuzzer: deadly signal\n\
            Test unit written to /x/crash-1\n\
            Base64: AaL=\n";
        let outcome = Outcome::of("a", false, text);
        assert!(!outcome.passed());
        let table = table(&[outcome]);
        assert!(table.contains("a.rs:1:2: | assertion failed\n"), "{table}");
        assert!(table.contains("Base64: AaL=\n"), "{table}");
        assert!(table.contains("target/fuzz a /x/crash-1"), "{table}");
    }

    #[test]
    fn a_run_without_any_input_has_not_passed() {
        assert!(!Outcome::of("a", true, "").passed());
        assert!(!Outcome::of("a", false, "").passed());
    }

    #[test]
    fn json_is_quoted() {
        let mut outcome = Outcome::of("a", true, GOOD);
        outcome.log = "b\"\\\n".to_owned();
        let json = json(&[outcome]);
        assert!(
            json.starts_with("[{\"target\":\"a\",\"executions\":900,"),
            "{json}"
        );
        assert!(json.contains(r#""log":"b\"\\\u000a""#), "{json}");
    }
}
