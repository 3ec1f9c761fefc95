//! Writes an image archive: an OCI image layout (image-spec, image-layout.md) that also has the
//! `manifest.json` of `docker save`, so that every engine loads it. All times are zero and all lists
//! are sorted: the same contents give the same bytes.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What the image contains and runs.
pub(super) struct Contents {
    /// Path without a leading slash, mode, bytes; sorted by path.
    pub(super) files: Vec<(String, u32, Vec<u8>)>,
    /// Path and mode of empty directories.
    pub(super) directories: Vec<(&'static str, u32)>,
    pub(super) entrypoint: String,
    pub(super) arguments: Vec<String>,
}

/// What the image says about itself.
pub(super) struct Labels {
    pub(super) version: String,
    /// The commit of the source.
    pub(super) revision: String,
}

/// A written archive.
pub(super) struct Archive {
    pub(super) bytes: Vec<u8>,
    /// `sha256:…` of the manifest.
    pub(super) digest: String,
}

/// Writes the archive of an image with this name and tag.
pub(super) fn write(contents: &Contents, tag: &str, labels: &Labels) -> Result<Archive> {
    let layer = layer(contents)?;
    let compressed = compress(&layer)?;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": [contents.entrypoint],
            "Cmd": contents.arguments,
            "Labels": {
                "org.opencontainers.image.title": "ztunnel",
                "org.opencontainers.image.description": "A node proxy for service meshes, accelerated by eBPF",
                "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
                "org.opencontainers.image.version": labels.version,
                "org.opencontainers.image.revision": labels.revision,
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    let config = text(&config);
    let manifest = text(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": described(CONFIG_TYPE, &config),
        "layers": [described(LAYER_TYPE, &compressed)],
    }));
    let mut index_entry = described(MANIFEST_TYPE, &manifest);
    index_entry["annotations"] = json!({
        "io.containerd.image.name": full_name(tag),
        "org.opencontainers.image.ref.name": tag.rsplit_once(':').map_or(tag, |(_, tag)| tag),
    });
    let index = text(&json!({ "schemaVersion": 2, "manifests": [index_entry] }));
    let docker = text(&json!([{
        "Config": blob(&config),
        "RepoTags": [tag],
        "Layers": [blob(&compressed)],
    }]));
    let files = [
        (blob(&config), config.as_slice()),
        (blob(&manifest), manifest.as_slice()),
        (blob(&compressed), compressed.as_slice()),
        ("index.json".to_owned(), index.as_slice()),
        ("manifest.json".to_owned(), docker.as_slice()),
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        ),
    ];
    let mut archive = Builder::new(Vec::new());
    for directory in ["blobs", "blobs/sha256"] {
        append(&mut archive, directory, 0o755, None)?;
    }
    for (path, bytes) in files {
        append(&mut archive, &path, 0o644, Some(bytes))?;
    }
    Ok(Archive {
        bytes: archive.into_inner().context("writing the archive")?,
        digest: digest(&manifest),
    })
}

/// The one layer, uncompressed.
fn layer(contents: &Contents) -> Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    let mut made: Vec<&str> = Vec::new();
    for (path, mode) in &contents.directories {
        append(&mut layer, path, *mode, None)?;
    }
    for (path, mode, bytes) in &contents.files {
        for (end, _) in path.match_indices('/') {
            let parent = path.get(..end).unwrap_or_default();
            if !made.contains(&parent) {
                append(&mut layer, parent, 0o755, None)?;
                made.push(parent);
            }
        }
        append(&mut layer, path, *mode, Some(bytes))?;
    }
    layer.into_inner().context("writing the layer")
}

/// Appends a file, or a directory if there are no bytes.
fn append(to: &mut Builder<Vec<u8>>, path: &str, mode: u32, bytes: Option<&[u8]>) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(match bytes {
        Some(_) => EntryType::Regular,
        None => EntryType::Directory,
    });
    header.set_mode(mode);
    header.set_size(bytes.map_or(0, |bytes| bytes.len() as u64));
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    to.append_data(&mut header, path, bytes.unwrap_or_default())
        .with_context(|| format!("writing {path}"))
}

fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder.write_all(bytes).context("compressing the layer")?;
    encoder.finish().context("compressing the layer")
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The path of a blob in the layout.
fn blob(bytes: &[u8]) -> String {
    format!("blobs/{}", digest(bytes).replace(':', "/"))
}

fn described(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
}

/// The name as containerd stores it. A name without a registry is one of Docker Hub.
fn full_name(tag: &str) -> String {
    let first = tag.split_once('/').map(|(first, _)| first);
    match first {
        Some(host) if host.contains(['.', ':']) || host == "localhost" => tag.to_owned(),
        Some(_) => format!("docker.io/{tag}"),
        None => format!("docker.io/library/{tag}"),
    }
}

/// This machine's architecture as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    fn archive() -> Archive {
        let contents = Contents {
            files: vec![
                ("etc/a".to_owned(), 0o644, b"first".to_vec()),
                ("usr/bin/b".to_owned(), 0o755, b"second".to_vec()),
            ],
            directories: vec![("tmp", 0o1777)],
            entrypoint: "/usr/bin/b".to_owned(),
            arguments: vec!["run".to_owned()],
        };
        let labels = Labels {
            version: "1.2.3".to_owned(),
            revision: "abc".to_owned(),
        };
        write(&contents, "localhost/b:1", &labels).unwrap()
    }

    /// The entries of a tar archive: mode and bytes by path.
    fn entries(bytes: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mode = entry.header().mode().unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (path, (mode, bytes))
        });
        entries.collect()
    }

    #[test]
    fn the_index_leads_to_every_blob_and_every_digest_is_right() {
        let archive = archive();
        let files = entries(&archive.bytes);
        let read = |path: &str| files[path].1.clone();
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let follow = |descriptor: &Value| {
            let named = descriptor["digest"].as_str().unwrap();
            let bytes = read(&format!("blobs/{}", named.replace(':', "/")));
            assert_eq!(digest(&bytes), named);
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };
        let index = json(&read("index.json"));
        assert_eq!(index["manifests"][0]["digest"], archive.digest);
        let manifest = json(&follow(&index["manifests"][0]));
        let config = json(&follow(&manifest["config"]));
        let compressed = follow(&manifest["layers"][0]);
        let mut layer = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(compressed.as_slice());
        decoder.read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/b");
        let labels = &config["config"]["Labels"];
        assert_eq!(labels["org.opencontainers.image.version"], "1.2.3");
        let layer = entries(&layer);
        assert_eq!(layer["usr/bin/b"], (0o755, b"second".to_vec()));
        assert_eq!(layer["tmp"].0, 0o1777);
        let docker = json(&read("manifest.json"));
        assert_eq!(docker[0]["RepoTags"][0], "localhost/b:1");
        let named = docker[0]["Layers"][0].as_str().unwrap();
        assert_eq!(read(named), compressed);
    }

    #[test]
    fn the_same_contents_give_the_same_bytes() {
        assert_eq!(archive().bytes, archive().bytes);
    }

    #[test]
    fn names_without_a_registry_are_of_docker_hub() {
        for (tag, full) in [
            ("ztunnel:1", "docker.io/library/ztunnel:1"),
            ("me/ztunnel:1", "docker.io/me/ztunnel:1"),
            ("localhost/ztunnel:1", "localhost/ztunnel:1"),
            ("example.com:5000/ztunnel:1", "example.com:5000/ztunnel:1"),
        ] {
            assert_eq!(full_name(tag), full);
        }
    }
}
