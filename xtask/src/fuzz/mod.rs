//! `cargo xtask fuzz`: builds the fuzz targets of `tests/fuzz` and runs them.
//!
//! The targets are built with cargo-fuzz, libFuzzer and AddressSanitizer by the pinned stable
//! compiler, which includes the sanitizer runtime; no other toolchain is needed. Inputs that reach
//! new code stay in `target/fuzz/corpus` for the next run. A run as a check (`cargo xtask test`)
//! starts from the committed seeds with a fixed random seed, so that its result depends only on the
//! checked code. It goes without AddressSanitizer, which doubles the time of the build: the
//! decoders are safe Rust, whose faults are panics, except for one copy of a record in `bpf_events`.

mod outcome;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use self::outcome::Outcome;
use crate::{requirements, shell};

const CARGO_FUZZ: &str = "0.13.1";
/// The directory of the targets.
const WORKSPACE: &str = "tests/fuzz";
/// The workspace's manifest.
pub(crate) const MANIFEST: &str = "tests/fuzz/Cargo.toml";
/// The memory limit of a target, with the sanitizer and libFuzzer, in MB. The decoders' heap has a limit
/// of its own (`tests/fuzz/src/lib.rs`).
const RSS_LIMIT_MB: u32 = 1024;
/// The time limit of one input, in seconds.
const UNIT_LIMIT: u32 = 20;
/// The interval of polling for the end of the targets.
const POLL: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only these targets; the default is all targets.
    targets: Vec<String>,
    /// The run time of each target, in seconds.
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u64,
    /// The number of concurrent targets.
    #[arg(long, default_value_t = 2, value_name = "N")]
    jobs: usize,
    /// What finds faults besides panics.
    #[arg(long, value_enum, default_value = "address")]
    sanitizer: Sanitizer,
    /// The format of the result.
    #[arg(long, short, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// A table.
    Table,
    /// A JSON array.
    Json,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let options = Options {
        seconds: arguments.seconds,
        jobs: arguments.jobs,
        reproducible: false,
        sanitizer: arguments.sanitizer,
    };
    let outcomes = fuzz(&arguments.targets, &options)?;
    match arguments.output {
        Output::Table => print!("{}", outcome::table(&outcomes)),
        Output::Json => println!("{}", outcome::json(&outcomes)),
    }
    let passed = outcomes.iter().all(Outcome::passed);
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

struct Options {
    /// The run time of each target, in seconds.
    seconds: u64,
    /// The number of concurrent targets.
    jobs: usize,
    /// Whether to start from the committed seeds only, with a fixed random seed.
    reproducible: bool,
    sanitizer: Sanitizer,
}

/// What the targets are instrumented with besides coverage, as cargo-fuzz names it.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Sanitizer {
    /// AddressSanitizer: invalid uses of memory.
    Address,
    /// Nothing: the build takes half of the time.
    None,
}

/// Runs every target for some seconds, reproducibly. Returns whether all passed, and their number.
pub(crate) fn check(seconds: u64) -> Result<(bool, usize)> {
    let options = Options {
        seconds,
        jobs: 2,
        reproducible: true,
        sanitizer: Sanitizer::None,
    };
    let outcomes = fuzz(&[], &options)?;
    print!("{}", outcome::table(&outcomes));
    Ok((outcomes.iter().all(Outcome::passed), outcomes.len()))
}

fn fuzz(wanted: &[String], options: &Options) -> Result<Vec<Outcome>> {
    requirements::for_fuzzing()?;
    ensure!(
        options.seconds > 0 && options.jobs > 0,
        "--seconds and --jobs must be at least 1"
    );
    let all = targets()?;
    if let Some(unknown) = wanted.iter().find(|name| !all.contains(name)) {
        bail!(
            "no fuzz target is named `{unknown}`; expected one of {}",
            all.join(", ")
        );
    }
    let chosen = if wanted.is_empty() { &all } else { wanted };
    build(chosen, options.sanitizer)?;
    let directories = Directories::new()?;
    let mut waiting = chosen.iter();
    let mut running: Vec<Running> = Vec::new();
    let mut outcomes = Vec::new();
    loop {
        while running.len() < options.jobs
            && let Some(name) = waiting.next()
        {
            running.push(directories.start(name, options)?);
        }
        if running.is_empty() {
            break;
        }
        thread::sleep(POLL);
        let mut still = Vec::new();
        for mut target in running {
            match target.child.try_wait().context("waiting for a target")? {
                None => still.push(target),
                Some(status) => {
                    let outcome = Outcome::read(&target.name, status.success(), &target.log)?;
                    let (done, of) = (outcomes.len() + 1, chosen.len());
                    eprintln!("[{done}/{of}] {}", outcome.line(target.started.elapsed()));
                    outcomes.push(outcome);
                }
            }
        }
        running = still;
    }
    outcomes.sort_by(|one, other| one.target.cmp(&other.target));
    Ok(outcomes)
}

/// The names of all targets: the file names in `targets`.
fn targets() -> Result<Vec<String>> {
    let directory = shell::root().join(WORKSPACE).join("targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if let (Some(stem), Some("rs")) =
            (path.file_stem(), path.extension().and_then(|e| e.to_str()))
        {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Builds the targets with one command, or a single target.
fn build(chosen: &[String], sanitizer: Sanitizer) -> Result<()> {
    let tools = tools()?;
    // cargo-fuzz has no --locked: this call fails if the lock file is out of date.
    let fetch = ["fetch", "--locked", "--manifest-path", MANIFEST];
    shell::must(&mut shell::cargo(fetch))?;
    let mut command = cargo_fuzz(&tools, "build");
    // With the default of one codegen unit, a single core would build the proxy. The targets run a
    // little slower.
    command.arg("--codegen-units=8");
    command.arg(match sanitizer {
        Sanitizer::Address => "--sanitizer=address",
        Sanitizer::None => "--sanitizer=none",
    });
    if let [only] = chosen {
        command.arg(only);
    }
    shell::must(&mut command)
}

/// A command of cargo-fuzz with the pinned compiler, which accepts the unstable flags of a
/// sanitizer only with RUSTC_BOOTSTRAP.
fn cargo_fuzz(tools: &Path, subcommand: &str) -> Command {
    let mut command = Command::new(tools.join("bin/cargo-fuzz"));
    command
        .args(["fuzz", subcommand, "--fuzz-dir", WORKSPACE, "--target-dir"])
        .arg(shell::target().join("fuzz"))
        .env("RUSTC_BOOTSTRAP", "1")
        .current_dir(shell::root());
    command
}

/// The directory of cargo-fuzz. Compiles it if it is missing or has another version.
fn tools() -> Result<PathBuf> {
    let tools = shell::root().join("target/tools");
    let version = Command::new(tools.join("bin/cargo-fuzz"))
        .arg("--version")
        .output();
    let installed = version.is_ok_and(|output| {
        let version = String::from_utf8_lossy(&output.stdout);
        version.trim().ends_with(&format!(" {CARGO_FUZZ}"))
    });
    if !installed {
        let mut install = shell::cargo(["install", "cargo-fuzz", "--version", CARGO_FUZZ]);
        install.args(["--locked", "--force", "--root"]).arg(&tools);
        shell::must(&mut install)?;
    }
    Ok(tools)
}

/// The directories of a run.
struct Directories {
    binaries: PathBuf,
    /// The directory of corpora, artifacts and logs.
    output: PathBuf,
}

struct Running {
    name: String,
    child: Child,
    log: PathBuf,
    started: Instant,
}

impl Directories {
    fn new() -> Result<Self> {
        let output = shell::target().join("fuzz");
        Ok(Self {
            binaries: output.join(shell::host()?).join("release"),
            output,
        })
    }

    /// Starts a target in the process group of this process, so that Ctrl-C ends it, too.
    fn start(&self, name: &str, options: &Options) -> Result<Running> {
        let corpora = if options.reproducible {
            "reproducible"
        } else {
            "corpus"
        };
        let [corpus, artifacts, logs] =
            [corpora, "artifacts", "logs"].map(|kind| self.output.join(kind));
        let (corpus, artifacts) = (corpus.join(name), artifacts.join(name));
        if options.reproducible && corpus.exists() {
            fs::remove_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
        }
        for directory in [&corpus, &artifacts, &logs] {
            fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        }
        let log = logs.join(format!("{name}.log"));
        let mut output = File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = Command::new(self.binaries.join(name));
        if options.reproducible {
            command.arg("-seed=1");
        }
        command
            .arg(format!("-max_total_time={}", options.seconds))
            .arg(format!("-rss_limit_mb={RSS_LIMIT_MB}"))
            .arg(format!("-timeout={UNIT_LIMIT}"))
            .arg("-print_final_stats=1")
            .arg(format!("-artifact_prefix={}/", artifacts.display()));
        let committed = shell::root().join(WORKSPACE);
        let dictionary = committed.join(format!("dictionaries/{name}.txt"));
        if dictionary.exists() {
            command.arg(format!("-dict={}", dictionary.display()));
        }
        command.arg(corpus);
        let seeds = committed.join("seeds").join(name);
        if seeds.exists() {
            command.arg(seeds);
        }
        writeln!(output, "{command:?}").context("writing a log")?;
        let errors = output.try_clone().context("a second handle of a log")?;
        let child = command
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("running {command:?}"))?;
        eprintln!("{name}: {} s", options.seconds);
        Ok(Running {
            name: name.to_owned(),
            child,
            log,
            started: Instant::now(),
        })
    }
}
