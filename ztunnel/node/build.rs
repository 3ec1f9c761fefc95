//! Builds the kernel programs, whose object `bpf` embeds.

use std::path::{Path, PathBuf};

fn main() {
    let Some(out) = std::env::var_os("OUT_DIR").map(PathBuf::from) else {
        return println!("cargo::error=cargo set no OUT_DIR");
    };
    for path in [
        "../../ebpf/programs",
        "../../ebpf/types",
        "../../rust-toolchain.toml",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    if let Err(problem) = kernel_programs(&out) {
        println!("cargo::error={problem}");
    }
}

fn kernel_programs(out: &Path) -> Result<(), String> {
    let request = ebpf_build::Request::from_build_script(out);
    let object = ebpf_build::build(&request).map_err(|error| format!("{error:#}"))?;
    std::fs::copy(&object, out.join("ztunnel-ebpf"))
        .map(drop)
        .map_err(|error| format!("{} cannot be copied: {error}", object.display()))
}
