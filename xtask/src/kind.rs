//! `cargo xtask kind`: a cluster of kind with Istio's control plane and this proxy.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Subcommand, ValueEnum};

use crate::image::{self, Profile, Target};
use crate::shell;

/// The image of the proxy in the cluster. It has a registry's name, so that Istio's charts take it
/// as a whole; nothing is pulled from there.
const PROXY_IMAGE: &str = "localhost/ztunnel:test";
/// The image with servers and clients.
const TRAFFIC_IMAGE: &str = "localhost/ztunnel-traffic:test";
/// The cluster that `up` makes if `kubectl` reaches none.
pub(crate) const CLUSTER: &str = "ztunnel";
const CLUSTER_CONFIG: &str = "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n\
                              nodes: [{role: control-plane}, {role: worker}]\n";
const NAMESPACE: &str = "istio-system";
/// The proxies.
const PROXIES: &str = "daemonset/ztunnel";
/// The init container that capture by programs needs.
const PREPARE: &str = "prepare-node";
/// The update strategy of Istio's chart: the new proxy starts beside the old one.
const SURGE: &str = "{type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}";

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Make the cluster, or bring the one of `kubectl` up to date with this source.
    ///
    /// Uses the cluster that `kubectl` is configured for if it is the one that this command makes, or
    /// the one that --cluster names; otherwise makes one named `ztunnel` with two nodes. Builds the
    /// images and loads them. Installs Istio's ambient mode with istioctl if it is not installed, with
    /// this proxy as its ztunnel.
    Up {
        /// How the proxy captures the pods' connections
        #[arg(long, value_enum, default_value_t)]
        capture: Capture,
        /// Another cluster of kind: its ztunnel is replaced
        #[arg(long, value_name = "NAME", default_value = CLUSTER)]
        cluster: String,
        /// Take the programs of the end-to-end tests: no other build, but the proxy is slower
        #[arg(long)]
        quick: bool,
    },
    /// Build the images that `up` uses and load them into Docker, for a cluster that is made in another
    /// way.
    Images {
        /// Take the programs of the end-to-end tests: no other build, but the proxy is slower
        #[arg(long)]
        quick: bool,
    },
    /// Tell the story of a small shop on the cluster: who calls whom, what is denied, what the network
    /// shows. Every claim is checked. Run `up` first.
    Demo,
    /// Delete the cluster that `up` has made.
    Down,
}

/// How the proxy captures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Capture {
    /// By the rules that istio-cni puts into the pods
    #[default]
    Rules,
    /// By eBPF programs
    Programs,
}

pub(crate) fn run(action: &Action) -> Result<ExitCode> {
    match action {
        Action::Up {
            capture,
            cluster,
            quick,
        } => up(*capture, cluster, profile(*quick))?,
        Action::Images { quick } => {
            require(&["docker"])?;
            load_images(profile(*quick), &Target::Docker)?;
        }
        Action::Demo => {
            require(&["docker", "kubectl"])?;
            shell::must(&mut shell::cargo(["build", "--bins"]))?;
            let mut demo = Command::new(shell::target().join("debug/cluster"));
            shell::must(demo.arg("--demo"))?;
        }
        Action::Down => {
            require(&["docker", "kind"])?;
            let mut delete = Command::new("kind");
            shell::must(delete.args(["delete", "cluster", "--name", CLUSTER]))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

const fn profile(quick: bool) -> Profile {
    if quick {
        Profile::Dev
    } else {
        Profile::Release
    }
}

/// Fails with one message that names every program that is missing.
pub(crate) fn require(programs: &[&str]) -> Result<()> {
    let missing = missing(programs);
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "not installed: {}. A cluster needs Docker (https://docs.docker.com/engine/install), kind \
         (https://kind.sigs.k8s.io), kubectl (https://kubernetes.io/docs/tasks/tools) and istioctl \
         (https://istio.io/latest/docs/ops/diagnostic-tools/istioctl)",
        missing.join(", ")
    )
}

/// Those of these programs that are not in PATH.
pub(crate) fn missing<'a>(programs: &[&'a str]) -> Vec<&'a str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let is_missing = |program: &&&str| {
        !directories
            .iter()
            .any(|place| place.join(program).is_file())
    };
    programs.iter().filter(is_missing).copied().collect()
}

/// Brings the cluster up.
pub(crate) fn up(capture: Capture, cluster: &str, profile: Profile) -> Result<()> {
    require(&["docker", "kind", "kubectl", "istioctl"])?;
    match current()? {
        Some(current) if current == cluster => {}
        _ if cluster == CLUSTER => create()?,
        _ => bail!(
            "kubectl is not configured for the cluster {cluster} of kind, or it does not answer"
        ),
    }
    load_images(profile, &Target::Kind(cluster.to_owned()))?;
    install()?;
    let previous = captures_by()?;
    if previous == capture {
        return replace_proxies();
    }
    match capture {
        Capture::Programs => to_programs(),
        Capture::Rules => to_rules(),
    }
}

/// Replaces the proxies one by one: the tag of the image is the same for every build.
fn replace_proxies() -> Result<()> {
    shell::must(&mut on_proxies(&["rollout", "restart", PROXIES]))?;
    shell::must(&mut on_proxies(&["rollout", "status", PROXIES]))
}

/// Builds the images and loads them.
fn load_images(profile: Profile, target: &Target) -> Result<()> {
    let images = shell::target().join("image");
    let built = image::build(&[image::PROXY, image::TRAFFIC], profile)?;
    for (program, tag, file) in [
        (image::PROXY, PROXY_IMAGE, "ztunnel-test.tar"),
        (image::TRAFFIC, TRAFFIC_IMAGE, "traffic-test.tar"),
    ] {
        let archive = images.join(file);
        image::make(program, &built, tag, &archive)?;
        image::load(target, &archive)?;
    }
    Ok(())
}

/// The cluster of kind that `kubectl` is configured for, if one answers.
fn current() -> Result<Option<String>> {
    let output = kubectl(&["config", "current-context"])
        .stderr(Stdio::null())
        .output()
        .context("kubectl cannot be run")?;
    let context = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let Some(cluster) = context.strip_prefix("kind-") else {
        return Ok(None);
    };
    let answers = kubectl(&["get", "nodes", "--request-timeout=10s"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("kubectl cannot be run")?;
    Ok(answers.success().then(|| cluster.to_owned()))
}

fn create() -> Result<()> {
    let directory = shell::target().join("image");
    std::fs::create_dir_all(&directory)?;
    let config = directory.join("kind.yaml");
    std::fs::write(&config, CLUSTER_CONFIG)?;
    let mut create = Command::new("kind");
    create
        .args(["create", "cluster", "--name", CLUSTER, "--config"])
        .arg(&config);
    shell::must(&mut create)
}

/// Installs Istio, or sets the image of its DaemonSet.
fn install() -> Result<()> {
    let installed = kubectl(&["-n", NAMESPACE, "get", "daemonset/ztunnel"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("kubectl cannot be run")?;
    if !installed.success() {
        let values = shell::target().join("image/istio.yaml");
        std::fs::write(&values, operator(&deployed("values.yaml")?))?;
        let mut install = Command::new("istioctl");
        install.args(["install", "-y", "-f"]).arg(values);
        return shell::must(&mut install);
    }
    let image = format!("istio-proxy={PROXY_IMAGE}");
    let mut set = kubectl(&["-n", NAMESPACE, "set", "image", "daemonset/ztunnel", &image]);
    shell::must(&mut set)
}

/// A file of `deploy/istio` with the image of the cluster.
fn deployed(name: &str) -> Result<String> {
    let file = shell::root().join("deploy/istio").join(name);
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("{} cannot be read", file.display()))?;
    let of_release = format!("localhost/{}", image::default_tag());
    ensure!(
        text.contains(&of_release),
        "{} does not have the image {of_release}",
        file.display()
    );
    Ok(text.replace(&of_release, PROXY_IMAGE))
}

/// The file with which istioctl installs the ambient mode, with these values of the `ztunnel` chart.
fn operator(values: &str) -> String {
    let head = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\n\
                spec:\n  profile: ambient\n  values:\n    ztunnel:\n";
    let nested = values.lines().map(|line| format!("      {line}\n"));
    head.to_owned() + &nested.collect::<String>()
}

/// How the proxies of the cluster capture: with programs there is an init container for them. On the
/// way back to rules, which may have been interrupted, the update strategy is `OnDelete`.
fn captures_by() -> Result<Capture> {
    let shown = "jsonpath={.spec.template.spec.initContainers[*].name} {.spec.updateStrategy.type}";
    let shown = output(&mut on_proxies(&["get", PROXIES, "-o", shown]))?;
    let mut words = shown.split_whitespace();
    Ok(if words.any(|word| word == PREPARE || word == "OnDelete") {
        Capture::Programs
    } else {
        Capture::Rules
    })
}

/// From rules to programs, as docs/kubernetes.md describes it.
fn to_programs() -> Result<()> {
    set_strategy("{type: RollingUpdate, rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}")?;
    patch(&deployed("programs.yaml")?)?;
    replace_proxies()?;
    set_strategy(SURGE)
}

/// From programs to rules, node by node, as docs/kubernetes.md describes it.
fn to_rules() -> Result<()> {
    set_strategy("{type: OnDelete, rollingUpdate: null}")?;
    patch(&format!(
        "spec: {{template: {{spec: {{initContainers: [{{name: {PREPARE}, $patch: delete}}], \
         containers: [{{name: istio-proxy, volumeMounts: [{{mountPath: /sys/fs/cgroup, $patch: \
         delete}}, {{mountPath: /sys/fs/bpf, $patch: delete}}]}}], volumes: [{{name: host-cgroup, \
         $patch: delete}}, {{name: host-bpf, $patch: delete}}]}}}}}}"
    ))?;
    let name = "jsonpath={.items[*].metadata.name}";
    let nodes = output(&mut kubectl(&["get", "nodes", "-o", name]))?;
    for node in nodes.split_whitespace() {
        let of_node = format!("--field-selector=spec.nodeName={node}");
        let pods = ["pods", "-l", "app=ztunnel", &of_node];
        shell::must(&mut on_proxies(&[&["delete"], &pods[..]].concat()))?;
        let image = format!("--image={PROXY_IMAGE}");
        let mut remove = on_proxies(&["debug", &format!("node/{node}"), "--profile=sysadmin"]);
        remove.args(["--attach=true", "--quiet", &image, "--"]);
        remove.args(["/usr/local/bin/ztunnel", "kernel", "remove"]);
        shell::must(&mut remove)?;
        let ready = ["--for=condition=Ready", "--timeout=60s"];
        shell::must(&mut on_proxies(&[&["wait"], &pods[..], &ready].concat()))?;
    }
    // `kubectl debug` leaves its pods.
    let debuggers = "app.kubernetes.io/managed-by=kubectl-debug";
    shell::must(&mut on_proxies(&["delete", "pods", "-l", debuggers]))?;
    set_strategy(SURGE)
}

/// Sets how the DaemonSet replaces its pods.
fn set_strategy(strategy: &str) -> Result<()> {
    patch(&format!("spec: {{updateStrategy: {strategy}}}"))
}

/// Changes the DaemonSet by a strategic merge patch.
fn patch(patch: &str) -> Result<()> {
    let mut apply = on_proxies(&["patch", PROXIES, "--patch", patch]);
    shell::must(&mut apply)
}

/// `kubectl` in the namespace of the proxies.
fn on_proxies(arguments: &[&str]) -> Command {
    kubectl(&[&["-n", NAMESPACE], arguments].concat())
}

/// Runs a command. Returns its output.
fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("{command:?} cannot be run"))?;
    ensure!(output.status.success(), "{command:?} failed");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn kubectl(arguments: &[&str]) -> Command {
    let mut kubectl = Command::new("kubectl");
    kubectl.args(arguments);
    kubectl
}
