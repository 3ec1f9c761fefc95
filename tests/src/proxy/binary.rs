//! The paths of the programs under test.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// The variable with the path of another proxy binary, for example of an earlier build.
const VARIABLE: &str = "ZTUNNEL_BIN";

/// The path of the proxy: `ZTUNNEL_BIN`, or the binary beside the running program.
///
/// # Errors
/// When it was not built.
pub fn ztunnel() -> Result<PathBuf> {
    if let Some(path) = env::var_os(VARIABLE) {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(path);
        }
        bail!("{VARIABLE}={}: the file does not exist", path.display());
    }
    companion("ztunnel")
}

/// The path of a program in the same target directory as the running one.
///
/// # Errors
/// When it was not built.
pub fn companion(name: &str) -> Result<PathBuf> {
    let running = env::current_exe().context("reading the path of the running program")?;
    // A test binary is in `deps`, below the programs.
    for directory in running.ancestors().skip(1).take(2) {
        let path = directory.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!(
        "there is no {name} beside {}: run `cargo build --workspace`, or set {VARIABLE} to a proxy binary",
        running.display()
    )
}
