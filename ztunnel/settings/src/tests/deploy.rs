//! The manifests in deploy/ contain settings: the variables are known and have the intended
//! effect.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use serde_yaml_ng::Value;

use super::super::{CaptureBy, Environment, Mode, Overrides, load_from, reference};

fn documents(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy")
        .join(name);
    let text = std::fs::read_to_string(path).unwrap();
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

/// The pod of the workload in a manifest or a patch.
fn pod(name: &str) -> Value {
    let with_a_pod = |document: &Value| !document["spec"]["template"].is_null();
    let document = documents(name).into_iter().find(with_a_pod).unwrap();
    document["spec"]["template"]["spec"].clone()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_sequence().unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}

/// The variables as kubelet would set them, with invented values for the fields of the pod.
fn variables(container: &Value) -> Vec<(String, String)> {
    let field = |name: &str| match name {
        "INSTANCE_IP" => "10.0.0.9",
        "ZTUNNEL_CPU_LIMIT" => "2",
        _ => "made-up",
    };
    let pair = |variable: &Value| {
        let name = text(variable, "name");
        let value = variable["value"].as_str().unwrap_or_else(|| field(name));
        (name.to_owned(), value.to_owned())
    };
    list(container, "env").iter().map(pair).collect()
}

#[test]
fn the_daemonset_is_a_node_of_istios_mesh() {
    let pod = pod("daemonset.yaml");
    let container = &list(&pod, "containers")[0];
    let environment = Environment::read(variables(container)).unwrap();
    let settings = load_from(None, &environment, &Overrides::default()).unwrap();
    assert_eq!(settings.mode, Mode::Shared);
    assert_eq!(settings.capture.by, CaptureBy::Auto);
    assert!(settings.capture.bpf_directory.starts_with("/sys/fs/bpf"));
    let mounts: BTreeSet<&str> = list(container, "volumeMounts")
        .iter()
        .map(|mount| text(mount, "mountPath"))
        .collect();
    let socket = settings.node_agent.unwrap().socket;
    assert!(mounts.contains(socket.parent().unwrap().to_str().unwrap()));
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(settings.termination_deadline.as_secs() < grace);
    let probe = &container["readinessProbe"]["httpGet"];
    assert_eq!(
        probe["port"].as_u64().unwrap(),
        u64::from(settings.readiness.port())
    );
}

#[test]
fn every_variable_of_the_daemonset_is_known() {
    let pod = pod("daemonset.yaml");
    let document = reference::markdown();
    for (name, _) in variables(&list(&pod, "containers")[0]) {
        // The chart sets it for Istio's ztunnel; this proxy does not use it.
        let is_unused = name == "SERVICE_ACCOUNT";
        let is_known = document.contains(&name) || name.starts_with("ISTIO_META_");
        assert!(is_known || is_unused, "{name}");
    }
}

#[test]
fn every_mount_has_its_volume_and_the_patch_is_part_of_the_daemonset() {
    let (whole, patch) = (pod("daemonset.yaml"), pod("istio/programs.yaml"));
    for pod in [&whole, &patch] {
        let volumes: Vec<&str> = list(pod, "volumes")
            .iter()
            .map(|it| text(it, "name"))
            .collect();
        let mounts = list(&list(pod, "containers")[0], "volumeMounts");
        let mounted: Vec<&str> = mounts.iter().map(|it| text(it, "name")).collect();
        assert_eq!(
            mounted.iter().collect::<BTreeSet<_>>(),
            volumes.iter().collect::<BTreeSet<_>>()
        );
    }
    for key in ["volumes", "volumeMounts"] {
        let of = |pod: &Value| match key {
            "volumes" => list(pod, key).to_vec(),
            _ => list(&list(pod, "containers")[0], key).to_vec(),
        };
        let all = of(&whole);
        assert!(of(&patch).iter().all(|part| all.contains(part)), "{key}");
    }
    // Beside its image, the init container is the same.
    let prepare = |pod: &Value| {
        let mut container = list(pod, "initContainers")[0].clone();
        container.as_mapping_mut().unwrap().remove("image");
        container
    };
    assert_eq!(prepare(&whole), prepare(&patch));
    assert_eq!(prepare(&whole)["args"][1], "prepare");
}
