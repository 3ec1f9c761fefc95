//! Builds the kernel programs, for `cargo xtask build-ebpf` and for the build script of `node`, so
//! that a plain `cargo build` embeds the same object.
//!
//! Missing tools are installed: the standard library's sources through rustup, the BPF linker into
//! `target/tools` of the workspace. Nothing is installed system-wide.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

/// The release of bpf-linker with the LLVM version of the pinned compiler.
const LINKER_VERSION: &str = "0.10.3";
/// `v3` has the atomic and 32-bit instructions; `--btf` because socket storage is a BTF map.
const RUSTFLAGS: [&str; 6] = [
    "-C",
    "target-cpu=v3",
    "-C",
    "debuginfo=2",
    "-C",
    "link-arg=--btf",
];
/// Allows the inner cargo to use the unstable flags of the pinned stable compiler.
const BOOTSTRAP: &str = "RUSTC_BOOTSTRAP";

/// A build: its sources and its target directory.
#[derive(Debug, Clone)]
pub struct Request {
    /// The root of the workspace, with `Cargo.toml` and `rust-toolchain.toml`.
    pub workspace: PathBuf,
    /// The target directory of the kernel programs. It must differ from that of a cargo that waits
    /// for this build, because each would wait for the other's lock.
    pub target: PathBuf,
}

impl Request {
    /// The build of `cargo xtask build-ebpf`, in `<target>/ebpf`, where `<target>` is
    /// `CARGO_TARGET_DIR` or the workspace's own `target`.
    #[must_use]
    pub fn from_command_line() -> Self {
        let workspace = workspace();
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| workspace.join("target"), PathBuf::from);
        Self {
            target: target.join("ebpf"),
            workspace,
        }
    }

    /// The build of a build script whose `OUT_DIR` is `out`: below the outer target directory.
    #[must_use]
    pub fn from_build_script(out: &Path) -> Self {
        // Cargo marks the root of a target directory; without the mark, OUT_DIR is four deep.
        let target = out
            .ancestors()
            .find(|directory| directory.join("CACHEDIR.TAG").exists())
            .or_else(|| out.ancestors().nth(4))
            .unwrap_or(out);
        Self {
            workspace: workspace(),
            target: target.join("ebpf"),
        }
    }
}

fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).unwrap_or(package).to_path_buf()
}

/// Builds the kernel programs after installing missing tools, and returns the object's path.
///
/// # Errors
/// If a missing tool cannot be installed, or the programs do not compile.
pub fn build(request: &Request) -> Result<PathBuf> {
    let channel = channel(&request.workspace)?;
    ensure_sources(&request.workspace, &channel)?;
    let linker = ensure_linker(&request.workspace, &channel)?;
    let mut cargo = cargo(&request.workspace, &channel);
    let mut flags = RUSTFLAGS.map(str::to_owned).to_vec();
    flags.push("-C".to_owned());
    flags.push(format!("linker={}", linker.display()));
    cargo
        .args(["build", "--release", "--package", "ztunnel-ebpf"])
        .args(["-Z", "build-std=core", "--target", "bpfel-unknown-none"])
        .arg("--target-dir")
        .arg(&request.target)
        .env(BOOTSTRAP, "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    run(&mut cargo, "the kernel programs do not build")?;
    let object = request
        .target
        .join("bpfel-unknown-none/release/ztunnel-ebpf");
    ensure!(
        object.exists(),
        "cargo built the kernel programs, but {} does not exist",
        object.display()
    );
    Ok(object)
}

/// The toolchain channel of `rust-toolchain.toml`.
fn channel(workspace: &Path) -> Result<String> {
    let path = workspace.join("rust-toolchain.toml");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    let table: toml::Table = text
        .parse()
        .with_context(|| format!("{} is not TOML", path.display()))?;
    table
        .get("toolchain")
        .and_then(|toolchain| toolchain.get("channel"))
        .and_then(toml::Value::as_str)
        .map(str::to_owned)
        .with_context(|| format!("{} does not contain toolchain.channel", path.display()))
}

/// A command of the pinned toolchain's cargo without the variables of an outer cargo: a build
/// script inherits flags, wrappers and directories for the host.
fn cargo(workspace: &Path, channel: &str) -> Command {
    let mut cargo = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        if is_outer_cargo(text) {
            cargo.env_remove(&name);
        }
    }
    cargo
        .env("RUSTUP_TOOLCHAIN", channel)
        .current_dir(workspace);
    cargo
}

/// Whether an environment variable belongs to the cargo that runs a build script. The variables
/// for storing and fetching crates stay: `CARGO_HOME`, network and registries.
fn is_outer_cargo(name: &str) -> bool {
    const KEPT: [&str; 4] = ["CARGO_HOME", "CARGO_NET", "CARGO_HTTP", "CARGO_REGISTR"];
    const DROPPED: [&str; 10] = [
        "CARGO",
        "RUSTC",
        "RUSTFLAGS",
        "RUSTDOC",
        "CLIPPY",
        "TARGET",
        "HOST",
        "OUT_DIR",
        "PROFILE",
        "OPT_LEVEL",
    ];
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    !starts(&KEPT) && starts(&DROPPED)
}

/// Installs the sources of `core`, which is compiled for the kernel's target.
fn ensure_sources(workspace: &Path, channel: &str) -> Result<()> {
    let mut rustc = Command::new("rustc");
    rustc
        .args(["--print", "sysroot"])
        .env("RUSTUP_TOOLCHAIN", channel)
        .current_dir(workspace);
    let output = rustc.output().context("rustc cannot be run")?;
    ensure!(
        output.status.success(),
        "rustc {channel} does not print its installation directory: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if sysroot.join("lib/rustlib/src/rust/library/core").exists() {
        return Ok(());
    }
    eprintln!("ebpf: adding rust-src to toolchain {channel}");
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", "rust-src", "--toolchain", channel]);
    run(
        &mut rustup,
        "rust-src cannot be added; the kernel programs need rustup (https://rustup.rs)",
    )
}

/// The linker in `target/tools`, or one of the right version in PATH; otherwise compiles one into
/// `target/tools`.
fn ensure_linker(workspace: &Path, channel: &str) -> Result<PathBuf> {
    let root = workspace.join("target/tools");
    let own = root.join("bin/bpf-linker");
    if own.exists() {
        return Ok(own);
    }
    if let Some(found) = linker_in_path() {
        return Ok(found);
    }
    eprintln!("ebpf: installing bpf-linker {LINKER_VERSION} into target/tools (about a minute)");
    let mut install = cargo(workspace, channel);
    install
        .args([
            "install",
            "bpf-linker",
            "--version",
            LINKER_VERSION,
            "--locked",
        ])
        .arg("--root")
        .arg(&root);
    run(&mut install, "bpf-linker cannot be installed")?;
    Ok(own)
}

fn linker_in_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join("bpf-linker"))
        .find(|candidate| {
            Command::new(candidate)
                .arg("--version")
                .output()
                .is_ok_and(|output| {
                    String::from_utf8_lossy(&output.stdout)
                        .split_whitespace()
                        .any(|word| word == LINKER_VERSION)
                })
        })
}

/// Runs a command whose own output goes to stderr, so that a build script's stdout stays cargo's.
fn run(command: &mut Command, failure: &str) -> Result<()> {
    let status = command
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("{} cannot be run", command.get_program().display()))?;
    if !status.success() {
        bail!("{failure} ({status})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_an_outer_cargo_are_dropped_and_cargo_home_is_kept() {
        for name in [
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC",
            "CARGO_TARGET_DIR",
            "CARGO_CFG_TARGET_OS",
            "TARGET",
            "CLIPPY_ARGS",
        ] {
            assert!(is_outer_cargo(name), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "PATH",
            "HOME",
            "RUSTUP_HOME",
        ] {
            assert!(!is_outer_cargo(name), "{name}");
        }
    }

    #[test]
    fn the_toolchain_is_the_pinned_one() {
        let pinned = channel(&workspace()).unwrap();
        assert!(pinned.starts_with("1."), "{pinned}");
    }

    #[test]
    fn a_build_script_builds_beside_the_outer_target() {
        let request =
            Request::from_build_script(Path::new("/no/such/target/debug/build/ztunnel-0/out"));
        assert_eq!(request.target, Path::new("/no/such/target/ebpf"));
    }
}
