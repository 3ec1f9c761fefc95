//! `ztunnel doctor`: checks whether this machine meets the requirements of a node.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Parser;
use serde_json::json;

use super::output::Output;
use node::doctor::{Check, Status};

/// Check whether this machine meets the requirements of a node
///
/// It tries the features instead of comparing version numbers: it loads the kernel programs with
/// maps of their own, attaches and detaches them where they have no effect, delivers and terminates
/// a connection in a new network namespace, and joins private sockets to check that applications
/// notice no difference. It changes nothing, and can run next to a proxy. Every failure and warning
/// comes with a remedy.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:\n  \
    ztunnel doctor                        check this machine\n  \
    ztunnel doctor --config node-a.yaml   also check the pods and ports of these settings\n  \
    ztunnel doctor -o json | jq '.checks[] | select(.verdict == \"fail\")'\n\n\
    FAIL: a proxy cannot start, or cannot serve its pods. warn: a feature works less well than it \
    could. Run it as the user and in the container of the proxy.\n\n\
    Exit codes: 0 success or warnings, 1 a check failed, 2 usage error.")]
pub(super) struct DoctorArgs {
    /// The settings file (YAML); without it, only environment and defaults
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The format of the result
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn run(
    args: &DoctorArgs,
    examine: fn(Option<&Path>) -> Vec<Check>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let checks = examine(args.config.as_deref());
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (failed, warned) = (count(Status::Fail), count(Status::Warn));
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

/// One line for each check, and the remedy below those that are not ok.
fn table(checks: &[Check], out: &mut impl Write) -> io::Result<()> {
    let width = checks.iter().map(|check| check.name.len()).max();
    let width = width.unwrap_or(0).min(40);
    for check in checks {
        let Check {
            name,
            status,
            detail,
            remedy,
        } = check;
        // The output of the kernel's verifier has many lines; they are indented below the first.
        let detail = detail
            .trim_end()
            .replace('\n', &format!("\n{:indent$}", "", indent = width + 8));
        writeln!(out, "{status:4}  {name:width$}  {detail}")?;
        if let Some(remedy) = remedy {
            writeln!(out, "{:indent$}=> {remedy}", "", indent = width + 8)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, status: Status, remedy: Option<&str>) -> Check {
        Check {
            name: name.to_owned(),
            status,
            detail: "found\nmore".to_owned(),
            remedy: remedy.map(str::to_owned),
        }
    }

    fn with_a_warning(_: Option<&Path>) -> Vec<Check> {
        vec![
            check("a.long_name", Status::Ok, None),
            check("b", Status::Warn, Some("do it")),
        ]
    }

    fn with_a_failure(file: Option<&Path>) -> Vec<Check> {
        assert_eq!(file, Some(Path::new("x.yaml")));
        vec![check("c", Status::Fail, Some("mend it"))]
    }

    fn args(output: Output, config: Option<&str>) -> DoctorArgs {
        DoctorArgs {
            config: config.map(PathBuf::from),
            output,
        }
    }

    #[test]
    fn the_remedy_is_below_its_check() {
        let mut out = Vec::new();
        run(&args(Output::Text, None), with_a_warning, &mut out).unwrap();
        let expected = "ok    a.long_name  found\n                   more\n\
                        warn  b            found\n                   more\n                   => do it\n\
                        \n2 checks, 1 with a warning, none failed\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_failed_check_is_an_error_after_all_checks_were_printed() {
        let mut out = Vec::new();
        let error = run(
            &args(Output::Json, Some("x.yaml")),
            with_a_failure,
            &mut out,
        )
        .unwrap_err();
        assert_eq!(error.to_string(), "1 of 1 checks failed");
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["failed"], 1);
        assert_eq!(value["checks"][0]["verdict"], "fail");
        assert_eq!(value["checks"][0]["remedy"], "mend it");
    }
}
