//! The pods that most checks use.

use std::fmt;

use anyhow::{Result, ensure};

use super::super::commands::{Cluster, Membership, Namespace, RunningCalls};
use super::super::shop::App;
use super::ROLLOUT;
use crate::traffic::calls::Parts;

/// A client and a server on each of two nodes.
pub(super) struct Pairs<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) namespace: Namespace<'a>,
}

impl<'a> Pairs<'a> {
    pub(super) fn new(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let namespace = cluster.namespace(name, Membership::InMesh)?;
        let apps = apps(&namespace.name, &cluster.nodes);
        deploy(cluster, &apps)?;
        let pairs = Self { cluster, namespace };
        // The first call of each pair also waits for the mesh configuration.
        for calls in pairs.start("--strict --most 1")? {
            calls.report()?;
        }
        Ok(pairs)
    }

    /// Starts calls from both clients to both servers: same node and other node.
    pub(super) fn start(&self, flags: &str) -> Result<Vec<RunningCalls>> {
        let namespace = &self.namespace.name;
        calls_to(self.cluster, namespace, namespace, flags)
    }

    /// The running pod of an app.
    pub(super) fn pod(&self, app: &str) -> Result<String> {
        self.cluster.pod_of(&self.namespace.name, app)
    }
}

/// A client outside the mesh on each of two nodes.
pub(super) struct Strangers<'a> {
    cluster: &'a Cluster,
    pub(super) namespace: Namespace<'a>,
}

impl<'a> Strangers<'a> {
    pub(super) fn new(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let namespace = cluster.namespace(name, Membership::Outside)?;
        let apps: Vec<App<'_>> = CLIENTS
            .iter()
            .zip(&cluster.nodes)
            .map(|(client, node)| App::on(&namespace.name, client, node))
            .collect();
        deploy(cluster, &apps)?;
        Ok(Self { cluster, namespace })
    }

    /// Starts calls from both clients to both servers of `pairs`.
    pub(super) fn start(&self, pairs: &Pairs<'_>, flags: &str) -> Result<Vec<RunningCalls>> {
        calls_to(
            self.cluster,
            &self.namespace.name,
            &pairs.namespace.name,
            flags,
        )
    }
}

/// Makes the pods of these apps, and waits until they are ready.
fn deploy(cluster: &Cluster, apps: &[App<'_>]) -> Result<()> {
    for app in apps {
        cluster.apply(&app.manifests())?;
    }
    for app in apps {
        let deployment = format!("deployment/{}", app.deployment());
        cluster.rolled_out(app.namespace, &deployment, ROLLOUT)?;
    }
    Ok(())
}

/// Starts calls from both clients of one namespace to both servers of another.
fn calls_to(
    cluster: &Cluster,
    from: &str,
    servers: &str,
    flags: &str,
) -> Result<Vec<RunningCalls>> {
    let mut running = Vec::new();
    for client in CLIENTS {
        let pod = cluster.pod_of(from, client)?;
        for server in SERVERS {
            let to = format!("{server}.{servers}:80");
            let mut all = vec![to.as_str()];
            all.extend(flags.split_whitespace());
            running.push(cluster.calls(from, &pod, &all));
        }
    }
    Ok(running)
}

pub(super) const CLIENTS: [&str; 2] = ["client-a", "client-b"];
pub(super) const SERVERS: [&str; 2] = ["server-a", "server-b"];

pub(super) fn apps<'a>(namespace: &'a str, nodes: &'a [String]) -> Vec<App<'a>> {
    let places = nodes.iter().map(String::as_str);
    let pairs = CLIENTS.iter().zip(SERVERS).zip(places);
    pairs
        .flat_map(|((client, server), node)| {
            [
                App::on(namespace, client, node),
                App::on(namespace, server, node),
            ]
        })
        .collect()
}

/// Calls of which none failed. It is displayed with the times of the longest one: its lookup, the
/// opening of its connection, its answer.
pub(super) struct Answered {
    pub(super) calls: u64,
    longest: Parts,
}

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts {
            resolve_ms,
            connect_ms,
            answer_ms,
        } = self.longest;
        write!(
            f,
            "{} calls (the longest {resolve_ms} + {connect_ms} + {answer_ms} ms)",
            self.calls
        )
    }
}

/// The sums of several reports; an error if a call failed.
pub(super) fn none_failed(what: &str, running: Vec<RunningCalls>) -> Result<Answered> {
    let (mut calls, mut longest) = (0, Parts::default());
    let mut failed = Vec::new();
    for running in running {
        let report = running.report()?;
        calls += report.answered;
        longest = longest.longer(report.longest);
        if report.failed > 0 {
            failed.push(report);
        }
    }
    ensure!(failed.is_empty(), "{what}: {failed:?}");
    ensure!(calls > 0, "{what}: nothing was called");
    Ok(Answered { calls, longest })
}
