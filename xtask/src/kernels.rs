//! `cargo xtask test kernels`: the doctor, the demo and the tests that a kernel decides, under other
//! kernels, in emulated machines.
//!
//! The machines are made by a program that `ZTUNNEL_TEST_VM` names. It is called as
//! `VM KERNEL -f FILE:PLACE ... -- COMMAND`: it boots that kernel with these files, runs the command as
//! root, prints its output, and exits with its status.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{image, shell};

/// The variable that names the program.
pub(crate) const VARIABLE: &str = "ZTUNNEL_TEST_VM";
/// The kernels on which the proxy works.
const TESTED: [&str; 2] = ["6.1", "6.12"];
/// A kernel that is too old: the doctor must say so.
const TOO_OLD: &str = "5.10";
/// The programs of this repository in a machine.
const PROGRAMS: [&str; 3] = ["ztunnel", "demo", "traffic"];
const PLACE: &str = "/opt/ztunnel";
/// Where the expected verdicts of the doctor are: one file for each kernel.
const EXPECTED: &str = "xtask/src/kernels";
/// The tests of the programs that run there: an emulated machine needs seconds for each.
const DECIDED_BY_KERNEL: [&str; 4] = [
    "bpf::tests::capture",
    "bpf::tests::hold",
    "bpf::tests::inbound",
    "bpf::tests::ports",
];

/// The program that makes the machines, if one is named.
pub(crate) fn machine() -> Option<OsString> {
    std::env::var_os(VARIABLE).filter(|program| !program.is_empty())
}

/// Runs everything. Returns the number of passed checks; an error names the first one that failed.
pub(crate) fn run(machine: &OsString) -> Result<usize> {
    let programs = image::build_stripped(&PROGRAMS)?;
    let tests = test_program()?;
    let mut passed = 0;
    for kernel in TESTED {
        let doctor = in_machine(machine, kernel, &programs, "ztunnel doctor")?;
        passed += compare(kernel, &doctor.output)?;
        let demo = in_machine(machine, kernel, &programs, "demo")?;
        ensure!(
            demo.succeeded && demo.output.contains("claims hold"),
            "Linux {kernel}: the demo failed:\n{}",
            demo.output
        );
        passed += 1;
        println!("Linux {kernel}: the doctor is content, and the demo's claims hold");
        let command = format!(
            "tests {} --ignored --test-threads=1",
            DECIDED_BY_KERNEL.join(" ")
        );
        let tested = in_machine_with(machine, kernel, &[(&tests, "tests")], &command)?;
        ensure!(tested.succeeded, "Linux {kernel}:\n{}", tested.output);
        passed += 1;
        let result = tested.output.lines().rev().find(|line| !line.is_empty());
        println!("Linux {kernel}: {}", result.unwrap_or_default());
    }
    let doctor = in_machine(machine, TOO_OLD, &programs, "ztunnel doctor")?;
    ensure!(!doctor.succeeded, "Linux {TOO_OLD} is not refused");
    passed += compare(TOO_OLD, &doctor.output)?;
    let line = line_of(&doctor.output, "machine.kernel").unwrap_or_default();
    ensure!(
        line.starts_with("FAIL") && line.contains("older than"),
        "Linux {TOO_OLD} must be refused by name:\n{}",
        doctor.output
    );
    println!("Linux {TOO_OLD}: {line}");
    Ok(passed + 1)
}

/// Builds the unit tests of `node`. Returns their program, stripped.
fn test_program() -> Result<PathBuf> {
    let mut build = shell::cargo(["test", "--package", "node", "--lib", "--no-run"]);
    let output = build
        .arg("--message-format=json")
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(
        output.status.success(),
        "the unit tests of node do not build"
    );
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut executables = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(str::to_owned)
    });
    let program = executables
        .next_back()
        .context("cargo names no program of tests")?;
    let stripped = shell::target().join("image/stripped/node-tests");
    let mut strip = Command::new("strip");
    shell::must(strip.arg("-o").arg(&stripped).arg(program))?;
    Ok(stripped)
}

/// Compares the doctor's verdicts with the expected ones, or writes them with `UPDATE=1`. Returns the
/// number of verdicts.
fn compare(kernel: &str, output: &str) -> Result<usize> {
    let file = shell::root().join(EXPECTED).join(format!("{kernel}.txt"));
    let found = verdicts(output);
    ensure!(!found.is_empty(), "Linux {kernel}: no doctor:\n{output}");
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(shell::root().join(EXPECTED))?;
        fs::write(&file, &found)?;
    }
    let expected = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    ensure!(
        found == expected,
        "Linux {kernel}: the doctor says\n{output}\nbut {} expects\n{expected}",
        file.display()
    );
    Ok(expected.lines().count())
}

/// The verdict and the name of each check in the doctor's text. How joined sockets behave depends on
/// the time that an emulated machine takes, too.
fn verdicts(output: &str) -> String {
    let checks = output.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (verdict, check) = (words.next()?, words.next()?);
        let is_verdict = ["ok", "warn", "FAIL"].contains(&verdict);
        (is_verdict && !check.starts_with("acceleration")).then(|| format!("{verdict} {check}\n"))
    });
    checks.collect()
}

struct Outcome {
    succeeded: bool,
    output: String,
}

/// Runs a command with the programs in a machine.
fn in_machine(machine: &OsString, kernel: &str, programs: &Path, command: &str) -> Result<Outcome> {
    let programs = PROGRAMS.map(|program| (programs.join(program), program));
    let files: Vec<(&PathBuf, &str)> = programs.iter().map(|(file, name)| (file, *name)).collect();
    in_machine_with(machine, kernel, &files, command)
}

/// Runs a command in a machine that has these files.
fn in_machine_with(
    machine: &OsString,
    kernel: &str,
    files: &[(&PathBuf, &str)],
    command: &str,
) -> Result<Outcome> {
    let mut run = Command::new(machine);
    run.arg(kernel);
    for (file, name) in files {
        run.arg("-f")
            .arg(format!("{}:{PLACE}/{name}", file.display()));
    }
    run.arg("--");
    run.args(format!("{PLACE}/{command}").split_whitespace());
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
        assert_eq!(verdicts(output), "ok settings\nFAIL machine.kernel\n");
    }
}
