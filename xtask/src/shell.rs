//! Runs other programs in the workspace's root, and prints each command.

use std::env;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The target triple of this machine.
pub(crate) fn host() -> Result<String> {
    let output = Command::new("rustc")
        .arg("-vV")
        .current_dir(root())
        .output()
        .context("rustc cannot be run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .context("the output of rustc -vV has no host")
}

/// A command of cargo.
pub(crate) fn cargo<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(arguments: I) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Runs a command. Returns whether it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> Result<bool> {
    print(command);
    let status = command
        .status()
        .with_context(|| format!("running {command:?}"))?;
    Ok(status.success())
}

/// Runs a command that must succeed.
pub(crate) fn must(command: &mut Command) -> Result<()> {
    if !succeeds(command)? {
        bail!("{} failed", line(command));
    }
    Ok(())
}

/// Runs a command, passes each line of its standard output to `see`, and prints the line.
pub(crate) fn watched(command: &mut Command, mut see: impl FnMut(&str)) -> Result<bool> {
    print(command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {command:?}"))?;
    let output = child
        .stdout
        .take()
        .context("a child without standard output")?;
    for text in BufReader::new(output).lines() {
        let text = text.context("reading a child's output")?;
        println!("{text}");
        see(&text);
    }
    Ok(child.wait().context("waiting for a child")?.success())
}

/// Builds the release binaries of proxy and tests.
pub(crate) fn build_release() -> Result<()> {
    must(&mut cargo([
        "build",
        "--release",
        "--bins",
        "-p",
        "ztunnel",
        "-p",
        "ztunnel-tests",
    ]))
}

/// Builds the release binaries, and replaces this process with a program of the
/// tests. Returns only if that fails.
pub(crate) fn run_release(program: &str, arguments: &[String]) -> Result<ExitCode> {
    build_release()?;
    let mut command = Command::new(target().join("release").join(program));
    command.args(arguments);
    // The program replaces this process, so that it receives signals directly and the shell waits
    // for its cleanup.
    Err(command.exec()).with_context(|| format!("running {command:?}"))
}

fn print(command: &Command) {
    eprintln!("$ {}", line(command));
}

fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    std::iter::once(name)
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}
