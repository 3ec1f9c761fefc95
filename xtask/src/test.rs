//! `cargo xtask test`: runs all checks and prints a summary.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::Result;

use crate::kind::{self, Capture};
use crate::{envoy, fuzz, kernels, requirements, shell, tidy};

/// The number of concurrent end-to-end tests. Each has its own nodes and proxies; more would make
/// tests with time limits wait for the CPU.
const E2E_THREADS: &str = "--test-threads=2";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only this part; the default is all parts.
    part: Option<Part>,
    /// The run time of each fuzz target, in seconds.
    #[arg(long, default_value_t = 15, value_name = "N")]
    fuzz_seconds: u64,
    /// With `cluster`: how the proxy captures; the default is both, one after the other.
    #[arg(long, value_enum)]
    capture: Option<Capture>,
    /// With `cluster`: another cluster of kind than the one of `cargo xtask kind up`.
    #[arg(long, value_name = "NAME", default_value = kind::CLUSTER)]
    cluster: String,
    /// With `cluster`: the checks to run; the default is all.
    #[arg(long = "check", value_name = "NAME")]
    checks: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Formatting, lints, house rules.
    Lint,
    /// Unit tests. Needs no root.
    Unit,
    /// Every fuzz target for some seconds. Needs a C++ compiler, but no root.
    Fuzz,
    /// End-to-end tests in network namespaces. Needs root.
    E2e,
    /// Checks on a real cluster: only if named. Brings up a cluster of kind with Istio if `kubectl`
    /// reaches none. Needs docker, kind, kubectl and istioctl.
    Cluster,
    /// The doctor and the demo under other kernels: only if named. Needs a program that boots them
    /// (`ZTUNNEL_TEST_VM`).
    Kernels,
}

struct Step {
    name: &'static str,
    passed: bool,
    tests: usize,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let started = Instant::now();
    if arguments.part == Some(Part::Cluster) {
        return cluster(arguments);
    }
    if arguments.part == Some(Part::Kernels) {
        return kernels();
    }
    let wanted = |part| arguments.part.is_none_or(|only| only == part);
    if wanted(Part::E2e) {
        requirements::for_e2e()?;
    }
    // Requirements of all parts are checked before the first part runs.
    if wanted(Part::Fuzz) {
        requirements::for_fuzzing()?;
    } else {
        requirements::for_building()?;
    }
    let mut steps = Vec::new();
    if wanted(Part::Lint) {
        lint(&mut steps)?;
    }
    if wanted(Part::Unit) {
        steps.push(tests(
            "unit",
            &mut shell::cargo(["test", "--lib", "--bins"]),
        )?);
    }
    if wanted(Part::Fuzz) {
        let (passed, targets) = fuzz::check(arguments.fuzz_seconds)?;
        steps.push(Step {
            name: "fuzz",
            passed,
            tests: targets,
        });
    }
    if wanted(Part::E2e) {
        e2e(&mut steps)?;
    }
    Ok(finish(&steps, started))
}

/// Prints the summary. Returns the exit code.
fn finish(steps: &[Step], started: Instant) -> ExitCode {
    println!("{}", summary(steps, started.elapsed().as_secs()));
    if steps.iter().all(|step| step.passed) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The doctor and the demo under other kernels.
fn kernels() -> Result<ExitCode> {
    let started = Instant::now();
    let Some(machine) = kernels::machine() else {
        eprintln!(
            "LEFT OUT: other kernels, because {} names no program that boots them",
            kernels::VARIABLE
        );
        return Ok(ExitCode::FAILURE);
    };
    let passed = kernels::run(&machine).inspect_err(|error| eprintln!("error: {error:#}"));
    let step = Step {
        name: "kernels",
        passed: passed.is_ok(),
        tests: passed.unwrap_or(0),
    };
    Ok(finish(&[step], started))
}

/// The checks on a real cluster, by each capture.
fn cluster(arguments: &Arguments) -> Result<ExitCode> {
    let started = Instant::now();
    let mut steps = Vec::new();
    if !shell::succeeds(&mut shell::cargo(["build", "--bins"]))? {
        return Ok(ExitCode::FAILURE);
    }
    let both = [Capture::Rules, Capture::Programs];
    for capture in both {
        if arguments.capture.is_some_and(|only| only != capture) {
            continue;
        }
        kind::up(capture, &arguments.cluster)?;
        let mut checks = Command::new(shell::target().join("debug/cluster"));
        let name = match capture {
            Capture::Rules => "cluster with rules",
            Capture::Programs => "cluster with programs",
        };
        steps.push(tests(name, checks.args(&arguments.checks))?);
    }
    Ok(finish(&steps, started))
}

fn lint(steps: &mut Vec<Step>) -> Result<()> {
    let mut formatted = shell::succeeds(&mut shell::cargo(["fmt", "--all", "--check"]))?;
    let fuzz = ["fmt", "--manifest-path", fuzz::MANIFEST, "--check"];
    formatted &= shell::succeeds(&mut shell::cargo(fuzz))?;
    steps.push(Step {
        name: "format",
        passed: formatted,
        tests: 0,
    });
    let mut clippy = shell::cargo(["clippy", "--all-targets", "--", "-D", "warnings"]);
    steps.push(Step {
        name: "clippy",
        passed: shell::succeeds(&mut clippy)?,
        tests: 0,
    });
    steps.push(Step {
        name: "tidy",
        passed: tidy::check()?,
        tests: 0,
    });
    Ok(())
}

fn e2e(steps: &mut Vec<Step>) -> Result<()> {
    // The tests start these binaries. All commands select the same packages, because another
    // selection would unify other features and rebuild every dependency.
    let mut build = shell::cargo(["build", "--bins"]);
    if !shell::succeeds(&mut build)? {
        steps.push(Step {
            name: "e2e build",
            passed: false,
            tests: 0,
        });
        return Ok(());
    }
    // Unit tests of `node` that need root are ignored by default. They run one at a time: each
    // attaches programs to the one root cgroup of the machine.
    const ALONE: &str = "--test-threads=1";
    let parts = [
        "bpf::",
        "pods::",
        "handover::",
        "agent::",
        "proxy::outbound::",
    ];
    let mut rooted = shell::cargo(["test", "--package", "node", "--lib", "--"]);
    rooted.args(parts).args(["--ignored", ALONE]);
    steps.push(tests("kernel and pods", &mut rooted)?);
    let mut end_to_end = shell::cargo(["test", "--no-fail-fast", "--test", "*", "--", E2E_THREADS]);
    if let Some(envoy) = envoy::find() {
        end_to_end.env(envoy::VARIABLE, envoy);
    }
    steps.push(tests("e2e", &mut end_to_end)?);
    Ok(())
}

fn tests(name: &'static str, command: &mut Command) -> Result<Step> {
    let mut count = 0;
    let passed = shell::watched(command, |line| count += passed_tests(line))?;
    Ok(Step {
        name,
        passed,
        tests: count,
    })
}

/// The number of passed tests in a line of libtest's output.
fn passed_tests(line: &str) -> usize {
    line.strip_prefix("test result:")
        .and_then(|rest| rest.split_once(" passed"))
        .and_then(|(before, _)| before.rsplit(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

fn summary(steps: &[Step], seconds: u64) -> String {
    let parts: Vec<_> = steps
        .iter()
        .map(|step| {
            let verdict = if step.passed { "ok" } else { "FAILED" };
            match step.tests {
                0 => format!("{} {verdict}", step.name),
                tests => format!("{} {verdict} ({tests} tests)", step.name),
            }
        })
        .collect();
    let verdict = if steps.iter().all(|step| step.passed) {
        "passed"
    } else {
        "FAILED"
    };
    format!("{verdict} in {seconds} s: {}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_tests_are_counted() {
        assert_eq!(
            passed_tests("test result: ok. 12 passed; 0 failed; 3 ignored"),
            12
        );
        assert_eq!(passed_tests("test result: FAILED. 2 passed; 1 failed"), 2);
        assert_eq!(passed_tests("test some::test ... ok"), 0);
    }

    #[test]
    fn the_summary_is_one_plain_line() {
        let steps = [
            Step {
                name: "tidy",
                passed: true,
                tests: 0,
            },
            Step {
                name: "unit",
                passed: false,
                tests: 7,
            },
        ];
        assert_eq!(
            summary(&steps, 5),
            "FAILED in 5 s: tidy ok, unit FAILED (7 tests)"
        );
    }
}
