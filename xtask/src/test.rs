//! `cargo xtask test`: runs all checks and prints a summary.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::Result;

use crate::image::Profile;
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
    /// With `cluster`: the checks to run; the default is all short ones.
    #[arg(long = "check", value_name = "NAME")]
    checks: Vec<String>,
    /// With `cluster`: run the checks that take minutes, too.
    #[arg(long)]
    long: bool,
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

/// The parts that have run.
struct Steps {
    all: Vec<Step>,
    started: Instant,
    /// The start of the current part.
    last: Instant,
}

struct Step {
    name: &'static str,
    passed: bool,
    tests: usize,
    seconds: u64,
}

impl Steps {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            all: Vec::new(),
            started: now,
            last: now,
        }
    }

    /// Adds the part that has just ended; `tests` is 0 if it has none.
    fn add(&mut self, name: &'static str, passed: bool, tests: usize) {
        let seconds = self.last.elapsed().as_secs();
        self.last = Instant::now();
        self.all.push(Step {
            name,
            passed,
            tests,
            seconds,
        });
    }

    /// Prints the summary. Returns the exit code.
    fn finish(&self) -> ExitCode {
        println!("{}", summary(&self.all, self.started.elapsed().as_secs()));
        if self.all.iter().all(|step| step.passed) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
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
    let mut steps = Steps::new();
    if wanted(Part::Lint) {
        lint(&mut steps)?;
    }
    if wanted(Part::Unit) {
        let mut unit = shell::cargo(["test", "--lib", "--bins"]);
        tests(&mut steps, "unit", &mut unit)?;
    }
    if wanted(Part::Fuzz) {
        let (passed, targets) = fuzz::check(arguments.fuzz_seconds)?;
        steps.add("fuzz", passed, targets);
    }
    if wanted(Part::E2e) {
        e2e(&mut steps)?;
    }
    Ok(steps.finish())
}

/// The doctor and the demo under other kernels.
fn kernels() -> Result<ExitCode> {
    let mut steps = Steps::new();
    let Some(machine) = kernels::machine() else {
        eprintln!(
            "LEFT OUT: other kernels, because {} names no program that boots them",
            kernels::VARIABLE
        );
        return Ok(ExitCode::FAILURE);
    };
    let passed = kernels::run(&machine).inspect_err(|error| eprintln!("error: {error:#}"));
    steps.add("kernels", passed.is_ok(), passed.unwrap_or(0));
    Ok(steps.finish())
}

/// The checks on a real cluster, by each capture.
fn cluster(arguments: &Arguments) -> Result<ExitCode> {
    let mut steps = Steps::new();
    if !shell::succeeds(&mut shell::cargo(["build", "--bins"]))? {
        return Ok(ExitCode::FAILURE);
    }
    let both = [Capture::Rules, Capture::Programs];
    for capture in both {
        if arguments.capture.is_some_and(|only| only != capture) {
            continue;
        }
        kind::up(capture, &arguments.cluster, Profile::Dev)?;
        let mut checks = Command::new(shell::target().join("debug/cluster"));
        checks.args(arguments.long.then_some("--long"));
        let name = match capture {
            Capture::Rules => "cluster with rules",
            Capture::Programs => "cluster with programs",
        };
        tests(&mut steps, name, checks.args(&arguments.checks))?;
    }
    Ok(steps.finish())
}

fn lint(steps: &mut Steps) -> Result<()> {
    let mut formatted = shell::succeeds(&mut shell::cargo(["fmt", "--all", "--check"]))?;
    let fuzz = ["fmt", "--manifest-path", fuzz::MANIFEST, "--check"];
    formatted &= shell::succeeds(&mut shell::cargo(fuzz))?;
    steps.add("format", formatted, 0);
    let mut clippy = shell::cargo(["clippy", "--all-targets", "--", "-D", "warnings"]);
    steps.add("clippy", shell::succeeds(&mut clippy)?, 0);
    steps.add("tidy", tidy::check()?, 0);
    Ok(())
}

fn e2e(steps: &mut Steps) -> Result<()> {
    // The tests start these binaries. All commands select the same packages, because another
    // selection would unify other features and rebuild every dependency.
    let mut build = shell::cargo(["build", "--bins"]);
    let built = shell::succeeds(&mut build)?;
    steps.add("e2e build", built, 0);
    if !built {
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
    let mut rooted = shell::cargo(["test", "--lib", "--"]);
    rooted.args(parts).args(["--ignored", ALONE]);
    tests(steps, "kernel and pods", &mut rooted)?;
    let mut end_to_end = shell::cargo(["test", "--no-fail-fast", "--test", "*", "--", E2E_THREADS]);
    if let Some(envoy) = envoy::find() {
        end_to_end.env(envoy::VARIABLE, envoy);
    }
    tests(steps, "e2e", &mut end_to_end)
}

/// Runs tests as a part.
fn tests(steps: &mut Steps, name: &'static str, command: &mut Command) -> Result<()> {
    let mut count = 0;
    let passed = shell::watched(command, |line| count += passed_tests(line))?;
    steps.add(name, passed, count);
    Ok(())
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
            let (name, seconds) = (step.name, step.seconds);
            match step.tests {
                0 => format!("{name} {verdict} ({seconds} s)"),
                tests => format!("{name} {verdict} ({tests} tests, {seconds} s)"),
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
                seconds: 1,
            },
            Step {
                name: "unit",
                passed: false,
                tests: 7,
                seconds: 4,
            },
        ];
        assert_eq!(
            summary(&steps, 5),
            "FAILED in 5 s: tidy ok (1 s), unit FAILED (7 tests, 4 s)"
        );
    }
}
