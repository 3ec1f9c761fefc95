//! Generates the types of the messages in `proto/`, and the client and server halves of their
//! services.

use std::path::{Path, PathBuf};

const FILES: [&str; 5] = [
    "ads.proto",
    "workload.proto",
    "security.proto",
    "citadel.proto",
    "zds.proto",
];

fn main() {
    println!("cargo::rerun-if-changed=proto");
    let Some(out) = std::env::var_os("OUT_DIR").map(PathBuf::from) else {
        return println!("cargo::error=OUT_DIR is not set");
    };
    if let Err(error) = generate(&out) {
        println!("cargo::error=cannot generate code from proto/: {error}");
    }
}

/// Writes `mod.rs` with the types of each package in nested modules.
fn generate(out: &Path) -> Result<(), String> {
    let descriptors = protox::compile(FILES, ["proto"]).map_err(|error| format!("{error:?}"))?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .build_transport(false)
        .bytes(".")
        .include_file("mod.rs")
        .out_dir(out)
        .compile_fds(descriptors)
        .map_err(|error| error.to_string())
}
