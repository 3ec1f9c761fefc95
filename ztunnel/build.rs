//! Builds the kernel programs and puts their object where `kernel` embeds it from.

use std::path::Path;

fn main() {
    for path in ["ebpf/programs", "ebpf/types", "rust-toolchain.toml"] {
        println!("cargo::rerun-if-changed=../{path}");
    }
    let Some(out) = std::env::var_os("OUT_DIR") else {
        return println!("cargo::error=cargo set no OUT_DIR");
    };
    let out = Path::new(&out);
    let request = xtask::ebpf::Request::from_build_script(out);
    match xtask::ebpf::build(&request) {
        Ok(object) => {
            if let Err(error) = std::fs::copy(&object, out.join("ztunnel-ebpf")) {
                println!(
                    "cargo::error={} cannot be copied: {error}",
                    object.display()
                );
            }
        }
        Err(error) => println!("cargo::error={error:#}"),
    }
}
