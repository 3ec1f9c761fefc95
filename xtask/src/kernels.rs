//! `cargo xtask test kernels`: the doctor and the demo under other kernels, in emulated machines.
//!
//! The machines are made by a program that `ZTUNNEL_TEST_VM` names. It is called as
//! `VM KERNEL -f FILE:PLACE ... -- COMMAND`: it boots that kernel with these files, runs the command as
//! root, prints its output, and exits with its status.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::shell;

/// The variable that names the program.
pub(crate) const VARIABLE: &str = "ZTUNNEL_TEST_VM";
/// The kernels on which the proxy works.
const TESTED: [&str; 2] = ["6.1", "6.12"];
/// A kernel that is too old: the doctor must say so.
const TOO_OLD: &str = "5.10";
const PLACE: &str = "/opt/ztunnel";
/// The checks of the doctor that a kernel decides. On a tested kernel none of them fails.
const DECIDED_BY_KERNEL: [&str; 7] = [
    "machine.kernel",
    "capture.programs",
    "capture.cgroup",
    "capture.inbound",
    "capture.listeners",
    "capture.delivery",
    "capture.destroy",
];

/// The program that makes the machines, if one is named.
pub(crate) fn machine() -> Option<OsString> {
    std::env::var_os(VARIABLE).filter(|program| !program.is_empty())
}

/// Runs everything. Returns the number of passed checks; an error names the first one that failed.
pub(crate) fn run(machine: &OsString) -> Result<usize> {
    shell::build_release()?;
    let mut passed = 0;
    for kernel in TESTED {
        let doctor = in_machine(machine, kernel, &["ztunnel", "doctor"])?;
        for check in DECIDED_BY_KERNEL {
            let line = line_of(&doctor.output, check)
                .with_context(|| format!("Linux {kernel}: the doctor does not report {check}"))?;
            ensure!(line.starts_with("ok"), "Linux {kernel}: {line}");
            passed += 1;
        }
        let demo = in_machine(machine, kernel, &["demo"])?;
        ensure!(
            demo.succeeded && demo.output.contains("claims hold"),
            "Linux {kernel}: the demo failed:\n{}",
            demo.output
        );
        passed += 1;
        println!("Linux {kernel}: the doctor is content, and the demo's claims hold");
    }
    let doctor = in_machine(machine, TOO_OLD, &["ztunnel", "doctor"])?;
    let line = line_of(&doctor.output, "machine.kernel").unwrap_or_default();
    ensure!(
        !doctor.succeeded && line.starts_with("FAIL") && line.contains("older than"),
        "Linux {TOO_OLD} must be refused by name:\n{}",
        doctor.output
    );
    println!("Linux {TOO_OLD}: {line}");
    Ok(passed + 1)
}

struct Outcome {
    succeeded: bool,
    output: String,
}

fn in_machine(machine: &OsString, kernel: &str, command: &[&str]) -> Result<Outcome> {
    let release = shell::target().join("release");
    let mut run = Command::new(machine);
    run.arg(kernel);
    for program in ["ztunnel", "demo", "traffic"] {
        let file = release.join(program);
        run.arg("-f")
            .arg(format!("{}:{PLACE}/{program}", file.display()));
    }
    run.arg("--");
    let mut words = command.iter();
    if let Some(program) = words.next() {
        run.arg(format!("{PLACE}/{program}"));
    }
    run.args(words);
    eprintln!("$ {run:?}");
    let output = run
        .output()
        .with_context(|| format!("{} ({VARIABLE}) cannot be run", machine.display()))?;
    Ok(Outcome {
        succeeded: output.status.success(),
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
    })
}

/// The line of a check in the doctor's text.
fn line_of<'a>(output: &'a str, check: &str) -> Option<&'a str> {
    let mut lines = output.lines();
    lines.find(|line| line.split_whitespace().nth(1) == Some(check))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_check_is_found_by_its_name() {
        let output = "ok    settings        the environment\nFAIL  machine.kernel  Linux 5.10\n";
        assert_eq!(
            line_of(output, "machine.kernel"),
            Some("FAIL  machine.kernel  Linux 5.10")
        );
        assert_eq!(line_of(output, "machine"), None);
    }
}
