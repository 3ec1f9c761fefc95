//! Settings as users write them, and the messages for invalid ones.

mod agent;
mod bad;
mod deploy;
mod fast_path;
mod layers;
mod reference;
mod upstream;

use std::path::PathBuf;

use super::{ConfigError, Environment, Overrides, Settings};

/// A small complete file. Tests put lines before or after it.
const GOOD: &str = r#"
node: node-a
ca: { local: { directory: state/ca } }
pods:
- { workload: cluster1//v1/Pod/default/a, netns: /run/netns/a }
workloads:
- { uid: cluster1//v1/Pod/default/a, name: a, serviceAccount: a, workloadIps: ["10.0.0.1", "fd00::1"], protocol: HBONE, node: node-a }
- { uid: cluster1//v1/Pod/default/b, name: b, serviceAccount: b, workloadIps: ["10.0.0.2"], protocol: HBONE, node: node-b }
"#;

/// Loads a text with these variables, through a real file.
fn load(text: &str, variables: &[(&str, &str)]) -> Result<Settings, ConfigError> {
    load_with(text, variables, &Overrides::default())
}

fn load_with(
    text: &str,
    variables: &[(&str, &str)],
    flags: &Overrides,
) -> Result<Settings, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("settings.yaml");
    std::fs::write(&path, text).unwrap();
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let environment = Environment::read(variables.iter().map(owned))?;
    super::load_from(Some(&path), &environment, flags)
}

/// The complaint, without the path of the temporary file.
fn complaint(text: &str, variables: &[(&str, &str)]) -> String {
    let error = load(text, variables).expect_err(text);
    let message = error.to_string();
    match message.split_once("settings.yaml: ") {
        Some((_, message)) => message.to_owned(),
        None => message,
    }
}
