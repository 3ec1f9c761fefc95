//! Builds the messages that the control plane of the tests speaks, from the proxy's own files.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=../ztunnel/proto");
    if let Err(problem) = messages() {
        println!("cargo::error=proto: {problem}");
    }
}

fn messages() -> Result<(), String> {
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from);
    let out = out.ok_or("cargo set no OUT_DIR")?.join("control");
    std::fs::create_dir_all(&out)
        .map_err(|error| format!("{} cannot be made: {error}", out.display()))?;
    let files = [
        "ads.proto",
        "workload.proto",
        "security.proto",
        "citadel.proto",
        "zds.proto",
    ];
    let descriptors =
        protox::compile(files, ["../ztunnel/proto"]).map_err(|error| format!("{error:?}"))?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_server(true)
        .build_transport(false)
        .include_file("mod.rs")
        .out_dir(&out)
        .compile_fds(descriptors)
        .map_err(|error| error.to_string())
}
