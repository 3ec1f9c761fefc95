//! The files in `deploy/`, and the steps of docs/kubernetes.md with them.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::super::MESH;
use super::super::commands::{Cluster, Membership, run};
use super::ROLLOUT;
use super::pairs::{Pairs, none_failed};

const PROXIES: &str = "daemonset/ztunnel";
/// The directory of a node in which the proxy pins programs and maps.
const PINS: &str = "/sys/fs/bpf/ztunnel";

/// Istio's chart with our values, our manifest, and the way out of the mesh, one after the other. At the
/// end the DaemonSet that was there before is back.
pub(super) fn install(cluster: &Cluster) -> Result<String> {
    let pairs = Pairs::new(cluster, "zt-install")?;
    let before = Installed::read(cluster)?;
    let results = installations(&pairs, &before.image);
    // The cluster gets its proxies back whatever happened.
    match (results, before.restore(&pairs)) {
        (results, Ok(())) => results,
        (Ok(_), Err(error)) => Err(error),
        (Err(error), Err(lost)) => Err(error.context(format!("and then: {lost:#}"))),
    }
}

fn installations(pairs: &Pairs<'_>, image: &str) -> Result<String> {
    let cluster = pairs.cluster;
    remove(cluster, image)?;
    add(pairs, &from_chart(image)?).context("Istio's chart with deploy/istio/values.yaml")?;
    ensure!(nodes_with_pins(cluster)? == 0, "programs capture");

    remove(cluster, image)?;
    add(pairs, &from_manifest(image)?).context("deploy/daemonset.yaml")?;
    ensure!(captured_by_programs(cluster)?, "rules capture");

    pairs.namespace.set_membership(Membership::Outside)?;
    remove(cluster, image)?;
    let plain = none_failed("without the mesh", pairs.start("--most 20 --seconds 30")?)?;
    pairs.namespace.set_membership(Membership::InMesh)?;
    Ok(format!(
        "Istio's chart by rules, the manifest by programs; {plain} after the end of the mesh"
    ))
}

/// The DaemonSet of the cluster.
struct Installed {
    manifest: Value,
    image: String,
}

impl Installed {
    fn read(cluster: &Cluster) -> Result<Self> {
        let found = cluster.get(&["-n", MESH, PROXIES])?;
        let found = found.first().context("no DaemonSet ztunnel")?;
        let image = found["spec"]["template"]["spec"]["containers"][0]["image"].as_str();
        Ok(Self {
            image: image.context("a container without an image")?.to_owned(),
            manifest: json!({
                "apiVersion": found["apiVersion"],
                "kind": found["kind"],
                "metadata": {
                    "name": found["metadata"]["name"],
                    "namespace": found["metadata"]["namespace"],
                    "labels": found["metadata"]["labels"],
                },
                "spec": found["spec"],
            }),
        })
    }

    fn restore(&self, pairs: &Pairs<'_>) -> Result<()> {
        remove(pairs.cluster, &self.image)?;
        pairs.namespace.set_membership(Membership::InMesh)?;
        add(pairs, &self.manifest.to_string()).context("the DaemonSet of before")
    }
}

/// The DaemonSet of Istio's chart, which istioctl contains, with `deploy/istio/values.yaml`.
fn from_chart(image: &str) -> Result<String> {
    let values = file("istio/values.yaml", image)?;
    let values: Value = serde_yaml_ng::from_str(&values)?;
    let operator = json!({
        "apiVersion": "install.istio.io/v1alpha1",
        "kind": "IstioOperator",
        "spec": { "profile": "ambient", "values": { "ztunnel": values } },
    });
    let overlay = tempfile::NamedTempFile::with_suffix(".yaml")?;
    fs::write(&overlay, operator.to_string())?;
    let overlay = overlay.path().display().to_string();
    let generated = run("istioctl", &["manifest", "generate", "-f", &overlay])?;
    for document in serde_yaml_ng::Deserializer::from_str(&generated) {
        let document = Value::deserialize(document)?;
        if document["kind"] == "DaemonSet" && document["metadata"]["name"] == "ztunnel" {
            let spec = &document["spec"];
            let container = &spec["template"]["spec"]["containers"][0];
            ensure!(container["image"] == *image, "the chart has {container}");
            for (value, of_chart) in [
                ("resources", &container["resources"]),
                ("updateStrategy", &spec["updateStrategy"]),
            ] {
                ensure!(values[value] == *of_chart, "{value}: {of_chart}");
            }
            return Ok(document.to_string());
        }
    }
    anyhow::bail!("istioctl generates no DaemonSet ztunnel")
}

fn from_manifest(image: &str) -> Result<String> {
    file("daemonset.yaml", image)
}

/// A file of `deploy/` with the image of the cluster.
fn file(name: &str, image: &str) -> Result<String> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let path = deploy.join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let of_files = concat!("localhost/ztunnel:", env!("CARGO_PKG_VERSION"));
    ensure!(
        text.contains(of_files),
        "{} has no image {of_files}",
        path.display()
    );
    Ok(text.replace(of_files, image))
}

/// Installs a DaemonSet. The calls of all pairs are answered then.
fn add(pairs: &Pairs<'_>, manifest: &str) -> Result<()> {
    let cluster = pairs.cluster;
    cluster.apply(manifest)?;
    cluster.rolled_out(MESH, PROXIES, ROLLOUT)?;
    // The pods that were without a proxy are enrolled.
    for calls in pairs.start("--strict --most 1 --seconds 30")? {
        calls.report()?;
    }
    none_failed("calls", pairs.start("--most 20 --seconds 30")?)?;
    Ok(())
}

/// Removes the DaemonSet, and what its proxies have left on the nodes.
fn remove(cluster: &Cluster, image: &str) -> Result<()> {
    let delete = ["delete", "--cascade=foreground", "--ignore-not-found"];
    cluster.kubectl(&[&["-n", MESH][..], &delete, &[PROXIES]].concat())?;
    let image = format!("--image={image}");
    for node in &cluster.nodes {
        let of_node = format!("node/{node}");
        let debug = ["-n", MESH, "debug", &of_node, "--profile=sysadmin"];
        let cleanup = ["/usr/local/bin/ztunnel", "node", "cleanup"];
        let options = ["--attach=true", "--quiet", &image, "--"];
        cluster.kubectl(&[&debug[..], &options, &cleanup].concat())?;
    }
    ensure!(nodes_with_pins(cluster)? == 0, "{PINS} is left on a node");
    let debuggers = "app.kubernetes.io/managed-by=kubectl-debug";
    cluster.kubectl(&["-n", MESH, "delete", "pods", "-l", debuggers])?;
    Ok(())
}

/// Whether programs capture on every node: their proxy pins them.
pub(super) fn captured_by_programs(cluster: &Cluster) -> Result<bool> {
    Ok(nodes_with_pins(cluster)? == cluster.nodes.len())
}

fn nodes_with_pins(cluster: &Cluster) -> Result<usize> {
    let mut nodes = 0;
    for node in &cluster.nodes {
        let pins = cluster.on_node(node, &format!("ls -d {PINS} 2>/dev/null || true"))?;
        nodes += usize::from(pins.trim() == PINS);
    }
    Ok(nodes)
}
