//! Builds what is not Rust: the kernel programs, whose object `kernel` embeds, and the messages of
//! `proto/`, whose types `xds`, `ca` and `pods` include.

use std::path::{Path, PathBuf};

/// One file of generated types for each room that speaks a protocol.
const PROTOCOLS: [(&str, &[&str]); 3] = [
    ("xds", &["ads.proto", "workload.proto", "security.proto"]),
    ("ca", &["citadel.proto"]),
    ("zds", &["zds.proto"]),
];

fn main() {
    let Some(out) = std::env::var_os("OUT_DIR").map(PathBuf::from) else {
        return println!("cargo::error=cargo set no OUT_DIR");
    };
    for path in [
        "../ebpf/programs",
        "../ebpf/types",
        "../rust-toolchain.toml",
        "proto",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    if let Err(problem) = kernel_programs(&out) {
        println!("cargo::error={problem}");
    }
    for (room, files) in PROTOCOLS {
        if let Err(problem) = messages(&out, room, files) {
            println!("cargo::error=proto: {problem}");
        }
    }
}

fn kernel_programs(out: &Path) -> Result<(), String> {
    let request = xtask::ebpf::Request::from_build_script(out);
    let object = xtask::ebpf::build(&request).map_err(|error| format!("{error:#}"))?;
    std::fs::copy(&object, out.join("ztunnel-ebpf"))
        .map(drop)
        .map_err(|error| format!("{} cannot be copied: {error}", object.display()))
}

/// Writes `<room>.rs` with the types of its packages, nested as the packages are.
fn messages(out: &Path, room: &str, files: &[&str]) -> Result<(), String> {
    let directory = out.join(room);
    std::fs::create_dir_all(&directory)
        .map_err(|error| format!("{} cannot be made: {error}", directory.display()))?;
    let descriptors = protox::compile(files, ["proto"]).map_err(|error| format!("{error:?}"))?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .build_transport(false)
        .bytes(".")
        .include_file("mod.rs")
        .out_dir(&directory)
        .compile_fds(descriptors)
        .map_err(|error| error.to_string())
}
