//! Finding the programs under test: `ZTUNNEL_BIN`, or next to the running program.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// Names another proxy binary, for example one of an earlier build to compare with.
const VARIABLE: &str = "ZTUNNEL_BIN";

/// The proxy.
///
/// # Errors
/// When it was not built.
pub fn ztunnel() -> Result<PathBuf> {
    if let Some(path) = env::var_os(VARIABLE) {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(path);
        }
        bail!("{VARIABLE} names {}, which is no file", path.display());
    }
    companion("ztunnel")
}

/// A program that was built into the same target directory as the running one.
///
/// # Errors
/// When it was not built.
pub fn companion(name: &str) -> Result<PathBuf> {
    let running = env::current_exe().context("asking for the running program's path")?;
    // A test runs from `deps`, a level below the programs.
    for directory in running.ancestors().skip(1).take(2) {
        let path = directory.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!(
        "there is no {name} beside {}: `cargo build --workspace` makes it, {VARIABLE} names another proxy",
        running.display()
    )
}
