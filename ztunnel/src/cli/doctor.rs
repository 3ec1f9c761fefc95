//! `ztunnel doctor`: is this machine fit to be a node?

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Parser;
use serde_json::json;

use super::output::Output;
use node::doctor::{Check, Verdict};

/// Find out whether this machine has what a node needs
///
/// Tries things out rather than looking at version numbers: loads the kernel programs over maps of
/// their own, attaches and detaches them where they do nothing, delivers and destroys a connection
/// in a network namespace made for it, and joins private sockets to see whether applications would
/// notice. It changes nothing and may run beside a proxy. Every line that is not fine says what to
/// do.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    ztunnel doctor                        is this machine fit?\n  \
    ztunnel doctor --config node-a.yaml   and are its pods there, their ports free?\n  \
    ztunnel doctor -o json | jq '.checks[] | select(.verdict == \"fail\")'\n\n\
    FAIL keeps a proxy from starting or from serving its pods; warn is about what works less well \
    than it could. Run it as the user, and in the container, that the proxy runs in.\n\n\
    Exit codes: 0 fine or warnings, 1 something failed, 2 called wrongly.")]
pub(super) struct DoctorArgs {
    /// The settings file (YAML); without it, environment and defaults alone
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,

    /// How to print it
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn run(
    args: &DoctorArgs,
    examine: fn(Option<&Path>) -> Vec<Check>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let checks = examine(args.config.as_deref());
    let count = |verdict| {
        checks
            .iter()
            .filter(|check| check.verdict == verdict)
            .count()
    };
    let (failed, warned) = (count(Verdict::Fail), count(Verdict::Warn));
    match args.output {
        Output::Json => {
            let value = json!({ "failed": failed, "warnings": warned, "checks": checks });
            writeln!(out, "{value:#}")?;
        }
        Output::Text => table(&checks, out)?,
    }
    let all = checks.len();
    if failed > 0 {
        bail!("{failed} of {all} checks failed");
    }
    if matches!(args.output, Output::Text) {
        writeln!(out, "\n{all} checks, {warned} with a warning, none failed")?;
    }
    Ok(())
}

/// A line each, and under those that are not fine what to do.
fn table(checks: &[Check], out: &mut impl Write) -> io::Result<()> {
    let width = checks.iter().map(|check| check.name.len()).max();
    let width = width.unwrap_or(0).min(40);
    for check in checks {
        let Check {
            name,
            verdict,
            detail,
            remedy,
        } = check;
        // The kernel's verifier says much, each line of it under the first.
        let detail = detail
            .trim_end()
            .replace('\n', &format!("\n{:indent$}", "", indent = width + 8));
        writeln!(out, "{verdict:4}  {name:width$}  {detail}")?;
        if let Some(remedy) = remedy {
            writeln!(out, "{:indent$}=> {remedy}", "", indent = width + 8)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, verdict: Verdict, remedy: Option<&str>) -> Check {
        Check {
            name: name.to_owned(),
            verdict,
            detail: "found\nmore".to_owned(),
            remedy: remedy.map(str::to_owned),
        }
    }

    fn well(_: Option<&Path>) -> Vec<Check> {
        vec![
            check("a.long_name", Verdict::Ok, None),
            check("b", Verdict::Warn, Some("do it")),
        ]
    }

    fn ill(file: Option<&Path>) -> Vec<Check> {
        assert_eq!(file, Some(Path::new("x.yaml")));
        vec![check("c", Verdict::Fail, Some("mend it"))]
    }

    fn args(output: Output, config: Option<&str>) -> DoctorArgs {
        DoctorArgs {
            config: config.map(PathBuf::from),
            output,
        }
    }

    #[test]
    fn the_table_has_what_to_do_under_what_is_wrong() {
        let mut out = Vec::new();
        run(&args(Output::Text, None), well, &mut out).unwrap();
        let expected = "ok    a.long_name  found\n                   more\n\
                        warn  b            found\n                   more\n                   => do it\n\
                        \n2 checks, 1 with a warning, none failed\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_failure_is_an_error_after_everything_was_printed() {
        let mut out = Vec::new();
        let error = run(&args(Output::Json, Some("x.yaml")), ill, &mut out).unwrap_err();
        assert_eq!(error.to_string(), "1 of 1 checks failed");
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["failed"], 1);
        assert_eq!(value["checks"][0]["verdict"], "fail");
        assert_eq!(value["checks"][0]["remedy"], "mend it");
    }
}
