//! Kinds of pods and services, and what `kubectl` does with pods.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::super::commands::{Cluster, wait_for};
use super::super::shop::{self, App, HOST_PORT, PORT};
use super::pairs::{Pairs, Strangers};
use super::{ROLLOUT, container_id};
use crate::traffic;

/// The time until a new name or address answers.
const LIMIT: Duration = Duration::from_secs(30);

/// Calls go from a pod to a place until they are answered.
fn answered(cluster: &Cluster, namespace: &str, pod: &str, to: &str) -> Result<()> {
    wait_for(&format!("{pod} calls {to}"), LIMIT, || {
        let calls = cluster.calls(namespace, pod, &[to, "--most", "3", "--seconds", "10"]);
        Ok(calls.report()?.answered == 3)
    })
}

pub(super) fn kinds(cluster: &Cluster) -> Result<String> {
    let pairs = Pairs::new(cluster, "zt-kinds")?;
    let strangers = Strangers::new(cluster, "zt-strangers")?;
    let namespace = pairs.namespace.name.as_str();
    let of_set = App {
        replicas: 2,
        node: None,
        ..App::on(namespace, "set", "")
    };
    cluster.apply(&of_set.stateful_manifests())?;
    let [near, far] = [0, 1].map(|node| cluster.nodes[node].as_str());
    cluster.apply(&shop::on_host_network(namespace, "host", far))?;
    cluster.apply(&shop::node_port(namespace, "server-a"))?;
    cluster.rolled_out(namespace, "statefulset/set", ROLLOUT)?;
    cluster.wait(namespace, "pod/host", "condition=Ready", ROLLOUT)?;

    let places = places(cluster, &pairs, &strangers, near)?;
    for (from, pod, to) in &places {
        answered(cluster, from, pod, to)?;
    }
    let (client, server) = (pairs.pod("client-a")?, pairs.pod("server-a")?);
    cluster.port_forward(namespace, &format!("pod/{server}"), PORT, |address| {
        let answer = traffic::get(address, "port-forward", LIMIT)?;
        ensure!(answer.status == 200, "port-forward: {answer:?}");
        Ok(())
    })?;
    restart_container(cluster, namespace, &server, near)?;
    let again = format!("server-a.{namespace}:80");
    answered(cluster, namespace, &client, &again)?;
    Ok(format!(
        "{} places, exec, port-forward, a restarted container",
        places.len()
    ))
}

/// Who calls what: the namespace and the name of a pod, and a place. `near` is the node of the first
/// pair.
fn places(
    cluster: &Cluster,
    pairs: &Pairs<'_>,
    strangers: &Strangers<'_>,
    near: &str,
) -> Result<Vec<(String, String, String)>> {
    let (namespace, outside) = (&pairs.namespace.name, &strangers.namespace.name);
    let (client, server) = (pairs.pod("client-a")?, pairs.pod("server-a")?);
    let stranger = cluster.pod_of(outside, "client-a")?;
    let field = |kind: &str, name: &str, path: &str| {
        let output = format!("jsonpath={{{path}}}");
        cluster.kubectl(&["-n", namespace, "get", kind, name, "-o", &output])
    };
    let internal = ".status.addresses[?(@.type==\"InternalIP\")].address";
    let of_near = field("node", near, internal)?;
    let of_near = of_near.split(' ').next().unwrap_or_default();
    let of_host = field("pod", "host", ".status.podIP")?;
    let of_server = field("pod", &server, ".status.podIP")?;
    let node_port = field("service", "server-a-node", ".spec.ports[0].nodePort")?;
    let places = [
        (
            namespace,
            client.as_str(),
            format!("set.{namespace}:{PORT}"),
        ),
        (namespace, &client, format!("set-1.set.{namespace}:{PORT}")),
        (namespace, &client, format!("{of_host}:{HOST_PORT}")),
        (namespace, &client, format!("{of_near}:{node_port}")),
        (outside, &stranger, format!("set-0.set.{namespace}:{PORT}")),
        (outside, &stranger, format!("{of_near}:{node_port}")),
        (namespace, "host", format!("server-a.{namespace}:80")),
        (namespace, "host", format!("{of_server}:{PORT}")),
        (namespace, &server, format!("server-a.{namespace}:80")),
        (namespace, &server, format!("{of_server}:{PORT}")),
        (namespace, &server, format!("127.0.0.1:{PORT}")),
    ];
    let owned = places.map(|(from, pod, to)| (from.clone(), pod.to_owned(), to));
    Ok(owned.into())
}

/// Ends the container of a pod and waits until kubelet has started it again.
fn restart_container(cluster: &Cluster, namespace: &str, pod: &str, node: &str) -> Result<()> {
    let stop = format!("crictl stop $({})", container_id(namespace, pod));
    cluster.on_node(node, &stop)?;
    wait_for("a restarted container", LIMIT, || {
        let pods = cluster.get(&["-n", namespace, "pod", pod])?;
        let status = pods
            .first()
            .map(|pod| pod["status"]["containerStatuses"][0].clone());
        Ok(status.is_some_and(|status| status["restartCount"] == 1 && status["ready"] == true))
    })
}
