//! `cargo xtask image`: the container image of the proxy, built without a container engine.

mod archive;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::shell;
use archive::{Contents, Labels};

/// The image must stay small: every node of a cluster pulls it.
const MAX_BYTES: u64 = 25 << 20;
/// The directory of the program in an image.
const PROGRAMS: &str = "usr/local/bin";
/// The roots that `XDS_ROOT_CA=SYSTEM` trusts, where OpenSSL's and Rust's libraries look for them.
const ROOTS: &str = "etc/ssl/certs/ca-certificates.crt";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The image's name and tag [default: ztunnel:<version>]
    #[arg(long, value_name = "NAME:TAG")]
    tag: Option<String>,

    /// The archive [default: image/ztunnel.tar in cargo's target directory]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Write the files of the image into this directory instead of an archive, for a Dockerfile
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["tag", "output", "load"])]
    root: Option<PathBuf>,

    /// Load the image into docker, or into a kind cluster: docker, kind or kind=CLUSTER
    #[arg(long, value_name = "TARGET")]
    load: Vec<Target>,
}

/// A program that an image is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    package: &'static str,
    name: &'static str,
    arguments: &'static [&'static str],
}

/// The proxy.
pub(crate) const PROXY: Program = Program {
    package: "ztunnel",
    name: "ztunnel",
    arguments: &["proxy", "ztunnel"],
};

/// The servers and clients of the tests on a cluster.
pub(crate) const TRAFFIC: Program = Program {
    package: "ztunnel-tests",
    name: "traffic",
    arguments: &["serve", "http", "--listen", "[::]:8080"],
};

/// How the programs are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As they are released: static.
    Release,
    /// As the end-to-end tests use them: the image also has the libraries of this machine that they
    /// need.
    Dev,
}

/// Where an image is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Docker,
    Kind(String),
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=').unwrap_or((text, "")) {
            ("docker", "") => Ok(Self::Docker),
            ("kind", "") => Ok(Self::Kind("kind".to_owned())),
            ("kind", cluster) => Ok(Self::Kind(cluster.to_owned())),
            _ => Err(format!("{text:?} is not docker, kind or kind=CLUSTER")),
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(root) = &arguments.root {
        let built = build(&[PROXY], Profile::Release)?;
        write_tree(&contents(PROXY, &built)?, root)?;
        println!("{}", root.display());
        return Ok(ExitCode::SUCCESS);
    }
    let tag = arguments.tag.clone().unwrap_or_else(default_tag);
    let output = arguments.output.clone();
    let output = output.unwrap_or_else(|| shell::target().join("image/ztunnel.tar"));
    let built = build(&[PROXY], Profile::Release)?;
    make(PROXY, &built, &tag, &output)?;
    for target in &arguments.load {
        load(target, &output)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the image of a program that is in the directory `built`, and prints where it is.
pub(crate) fn make(program: Program, built: &Path, tag: &str, output: &Path) -> Result<()> {
    let image = write(&contents(program, built)?, tag, output)?;
    println!(
        "{} ({tag}, {:.1} MB, manifest {})",
        output.display(),
        image.bytes as f64 / 1e6,
        image.digest
    );
    Ok(())
}

/// The tag of an image of this source.
pub(crate) fn default_tag() -> String {
    format!("ztunnel:{}", env!("CARGO_PKG_VERSION"))
}

/// The written image.
struct Image {
    /// The size of the archive.
    bytes: u64,
    /// The digest of the manifest, by which a registry names the image.
    digest: String,
}

fn write(contents: &Contents, tag: &str, output: &Path) -> Result<Image> {
    let labels = Labels {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: revision(),
    };
    let archive = archive::write(contents, tag, &labels)?;
    if let Some(directory) = output.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("{} cannot be created", directory.display()))?;
    }
    fs::write(output, &archive.bytes)
        .with_context(|| format!("{} cannot be written", output.display()))?;
    let bytes = archive.bytes.len() as u64;
    ensure!(
        bytes <= MAX_BYTES,
        "the image has {bytes} bytes, {MAX_BYTES} are allowed"
    );
    Ok(Image {
        bytes,
        digest: archive.digest,
    })
}

/// The contents of the image of a program that is in the directory `built`.
fn contents(program: Program, built: &Path) -> Result<Contents> {
    let built = built.join(program.name);
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let path = format!("{PROGRAMS}/{}", program.name);
    let mut files = vec![
        (ROOTS.to_owned(), 0o644, public_roots()),
        (path.clone(), 0o755, read(&built)?),
    ];
    for library in libraries(&built)? {
        let bytes = read(&library)?;
        let library = library.to_string_lossy();
        files.push((library.trim_start_matches('/').to_owned(), 0o755, bytes));
    }
    files.sort();
    Ok(Contents {
        entrypoint: format!("/{path}"),
        files,
        directories: vec![("tmp", 0o1777)],
        arguments: program.arguments.iter().map(ToString::to_string).collect(),
    })
}

fn write_tree(contents: &Contents, root: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let permit = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    for (path, mode, bytes) in &contents.files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap_or(root))?;
        fs::write(&path, bytes)
            .and_then(|()| permit(&path, *mode))
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    for (path, mode) in &contents.directories {
        let path = root.join(path);
        fs::create_dir_all(&path)
            .and_then(|()| permit(&path, *mode))
            .with_context(|| format!("{} cannot be created", path.display()))?;
    }
    Ok(())
}

/// Mozilla's root certificates, as a PEM bundle.
fn public_roots() -> Vec<u8> {
    let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS;
    let blocks: Vec<pem::Pem> = roots
        .iter()
        .map(|root| pem::Pem::new("CERTIFICATE", root.as_ref()))
        .collect();
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_many_config(&blocks, config).into_bytes()
}

/// Whether an ELF program of 64 bits names a dynamic loader (`PT_INTERP`, elf(5)).
fn has_interpreter(program: &[u8]) -> bool {
    const INTERPRETER: [u8; 4] = 3_u32.to_le_bytes();
    let number = |at: usize, bytes: usize| {
        let field = program.get(at..at + bytes)?;
        let digits = field.iter().rev();
        Some(digits.fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    let headers = || Some((number(32, 8)?, number(54, 2)?, number(56, 2)?));
    headers().is_some_and(|(start, size, count)| {
        let mut starts = (0..count).map(|header| start + header * size);
        starts.any(|at| program.get(at..at + 4) == Some(INTERPRETER.as_slice()))
    })
}

/// The commit of this source: of `ZTUNNEL_REVISION` if that is set, as in a container build without
/// the repository; otherwise that of git, or `unknown`.
fn revision() -> String {
    if let Ok(revision) = std::env::var("ZTUNNEL_REVISION")
        && !revision.is_empty()
    {
        return revision;
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .args(arguments)
            .current_dir(shell::root())
            .output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "HEAD"]) else {
        return "unknown".to_owned();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit}-modified"),
    }
}

/// Builds programs for images. Programs that are built together share their dependencies. Returns the
/// directory of the programs.
pub(crate) fn build(programs: &[Program], profile: Profile) -> Result<PathBuf> {
    match profile {
        Profile::Release => build_static(programs),
        Profile::Dev => {
            let names: Vec<&str> = programs.iter().map(|program| program.name).collect();
            build_stripped(&names)
        }
    }
}

/// Builds programs as for the end-to-end tests, which share the build, and strips copies of them.
/// Returns the directory of the copies.
pub(crate) fn build_stripped(programs: &[&str]) -> Result<PathBuf> {
    shell::must(&mut shell::cargo(["build", "--bins"]))?;
    let directory = shell::target().join("image/stripped");
    fs::create_dir_all(&directory)
        .with_context(|| format!("{} cannot be created", directory.display()))?;
    for program in programs {
        let built = shell::target().join("debug").join(program);
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(directory.join(program)).arg(built);
        shell::must(&mut strip)?;
    }
    Ok(directory)
}

/// The shared libraries that a program needs, and its loader; none of a static program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let bytes = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    if !has_interpreter(&bytes) {
        return Ok(Vec::new());
    }
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("running ldd")?;
    ensure!(output.status.success(), "ldd {} failed", program.display());
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(library_paths(&listed).map(PathBuf::from).collect())
}

/// The paths in the output of ldd(1): `libc.so.6 => /lib/libc.so.6 (0x…)` or `/lib/ld-linux.so (0x…)`.
fn library_paths(listed: &str) -> impl Iterator<Item = &str> {
    listed.lines().filter_map(|line| {
        let place = line.split_once("=>").map_or(line, |(_, place)| place);
        let path = place.trim().split(' ').next()?;
        path.starts_with('/').then_some(path)
    })
}

/// Builds programs that are static, stripped, and without paths of this machine, so that the same
/// sources give the same bytes.
fn build_static(programs: &[Program]) -> Result<PathBuf> {
    let host = shell::host()?;
    ensure!(
        host.contains("linux"),
        "an image needs a Linux program, and this machine is {host}"
    );
    let name = host.to_uppercase().replace('-', "_");
    let cargo_home = std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    let places = [(shell::root(), "/source"), (cargo_home.as_path(), "/cargo")];
    let mapped = |option: &str| {
        let options = places.map(|(from, to)| format!("{option}{}={to}", from.display()));
        options.join(" ")
    };
    let flags = format!(
        "-C target-feature=+crt-static -C strip=symbols {}",
        mapped("--remap-path-prefix=")
    );
    let mut cargo = shell::cargo(["build", "--release", "--locked", "--target", &host]);
    for program in programs {
        cargo.args(["--package", program.package, "--bin", program.name]);
    }
    cargo
        .env(format!("CARGO_TARGET_{name}_RUSTFLAGS"), flags)
        .env(
            format!("CFLAGS_{}", host.replace('-', "_")),
            mapped("-ffile-prefix-map="),
        )
        .env("ZTUNNEL_REVISION", revision())
        // They would replace the flags for the target.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    if !shell::succeeds(&mut cargo)? {
        bail!(
            "the static program does not build; if the linker does not find -lc, install the static C \
             library (Debian: libc6-dev, Fedora: glibc-static)"
        );
    }
    let directory = shell::target().join(host).join("release");
    for program in programs {
        let built = directory.join(program.name);
        let is_static = !has_interpreter(&fs::read(&built)?);
        ensure!(is_static, "{} is not static", built.display());
    }
    Ok(directory)
}

/// Loads an archive.
pub(crate) fn load(target: &Target, archive: &Path) -> Result<()> {
    let mut command = match target {
        Target::Docker => {
            let mut docker = Command::new("docker");
            docker.args(["load", "--quiet", "--input"]).arg(archive);
            docker
        }
        Target::Kind(cluster) => {
            let mut kind = Command::new("kind");
            kind.args(["load", "image-archive"])
                .arg(archive)
                .args(["--name", cluster]);
            kind
        }
    };
    shell::must(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_docker_or_a_cluster_of_kind() {
        let parsed = |text: &str| text.parse::<Target>();
        assert_eq!(parsed("docker"), Ok(Target::Docker));
        assert_eq!(parsed("kind"), Ok(Target::Kind("kind".to_owned())));
        assert_eq!(parsed("kind=mesh"), Ok(Target::Kind("mesh".to_owned())));
        for wrong in ["", "podman", "docker=x"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_program_of_this_machine_is_recognised_as_dynamic() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(has_interpreter(&own));
        assert!(!has_interpreter(b"not a program"));
    }

    #[test]
    fn the_libraries_of_a_program_are_those_that_ldd_lists() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f11)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f12)\n";
        let found: Vec<&str> = library_paths(listed).collect();
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(found, expected);
        let own = libraries(&std::env::current_exe().unwrap()).unwrap();
        assert!(own.len() > 1, "{own:?}");
    }

    #[test]
    fn the_public_roots_are_a_bundle_of_certificates() {
        let bundle = public_roots();
        let certificates = pem::parse_many(&bundle).unwrap();
        assert!(certificates.len() > 100, "{}", certificates.len());
        assert!(certificates.iter().all(|root| root.tag() == "CERTIFICATE"));
    }
}
