//! Output formats, printed errors and exit codes.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::ValueEnum;

/// The format of a command's result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// The exit code of a usage error.
const USAGE: u8 = 2;

/// Prints clap's output: help and version on standard output with code 0, usage errors on standard
/// error with code 2.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    // A failure to print cannot be reported: the terminal is gone.
    let _printed = error.print().is_ok();
    if error.use_stderr() {
        ExitCode::from(USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

/// Turns a command's result into an exit code, and prints an error with its causes.
pub(super) fn finish(result: anyhow::Result<()>, errors: &mut impl Write) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    // A reader that closed the pipe (`| head`) has what it needs: not a failure.
    if error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
    {
        return ExitCode::SUCCESS;
    }
    let _printed = errors.write_all(chain(&error).as_bytes()).is_ok();
    ExitCode::FAILURE
}

/// An error and its causes, a line each, without causes that the line above contains.
fn chain(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}\n");
    let mut previous = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !previous.contains(&cause) {
            text.push_str("  caused by: ");
            text.push_str(&cause);
            text.push('\n');
            previous = cause;
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
        let mut errors = Vec::new();
        assert_eq!(finish(Err(error), &mut errors), ExitCode::FAILURE);
        assert_eq!(String::from_utf8(errors).unwrap(), expected);
    }

    #[test]
    fn a_closed_pipe_is_not_a_failure() {
        let mut errors = Vec::new();
        let closed = std::io::Error::from(ErrorKind::BrokenPipe);
        assert_eq!(finish(Err(closed.into()), &mut errors), ExitCode::SUCCESS);
        assert!(errors.is_empty());
    }
}
