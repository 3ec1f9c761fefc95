//! How results and errors reach the person who called.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::ValueEnum;

/// How a command prints its result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// Exit code of a wrong call.
const USAGE: u8 = 2;

/// Prints what clap has to say: help and version on standard output with code 0, complaints on
/// standard error with code 2.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    // Nobody is left to complain to when the terminal is gone.
    let _said = error.print().is_ok();
    if error.use_stderr() {
        ExitCode::from(USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

/// Turns a command's result into an exit code, and prints an error with its causes.
pub(super) fn finish(result: anyhow::Result<()>, complaints: &mut impl Write) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    // Whoever reads the output (`| head`) has seen enough: not a failure.
    if error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
    {
        return ExitCode::SUCCESS;
    }
    let _said = complaints.write_all(chain(&error).as_bytes()).is_ok();
    ExitCode::FAILURE
}

/// An error and its causes, a line each, without causes that the line above already quotes.
fn chain(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}\n");
    let mut said = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !said.contains(&cause) {
            text.push_str("  caused by: ");
            text.push_str(&cause);
            text.push('\n');
            said = cause;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn an_error_is_printed_with_its_causes_once() {
        let error = Err::<(), _>(anyhow!("no such file"))
            .context("cannot read a.yaml: no such file")
            .context("cannot start")
            .unwrap_err();
        let expected = "error: cannot start\n  caused by: cannot read a.yaml: no such file\n";
        assert_eq!(chain(&error), expected);
        let mut complaints = Vec::new();
        assert_eq!(finish(Err(error), &mut complaints), ExitCode::FAILURE);
        assert_eq!(String::from_utf8(complaints).unwrap(), expected);
    }

    #[test]
    fn a_closed_pipe_is_not_a_failure() {
        let mut complaints = Vec::new();
        let closed = std::io::Error::from(ErrorKind::BrokenPipe);
        assert_eq!(
            finish(Err(closed.into()), &mut complaints),
            ExitCode::SUCCESS
        );
        assert!(complaints.is_empty());
    }
}
