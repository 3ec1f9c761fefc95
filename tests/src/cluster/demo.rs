//! The demo on a real cluster: a small shop, who calls whom by which path and with which identities,
//! what is denied, and what the network between the nodes shows. Every claim is checked.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::commands::{Cluster, Membership, name, wait_for};
use super::shop::{self, App, Serves};
use crate::demo::page::Page;
use crate::traffic::calls::Report;

/// The namespaces of the demo.
const SHOP: &str = "zt-shop";
const OUTSIDE: &str = "zt-shop-outside";
const STEPS: usize = 6;
const ROLLOUT: Duration = Duration::from_secs(120);

/// A call of the demo as the access logs of the proxies report it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    from: String,
    to: String,
    path: &'static str,
    client: String,
    server: String,
}

/// Runs the demo and prints it. Everything that it makes is removed at the end.
///
/// # Errors
/// When something cannot be started, or a claim does not hold.
pub fn demo() -> Result<()> {
    let cluster = Cluster::connect()?;
    let mut page = Page::new(STEPS);
    let (shop, outside) = start_shop(&cluster, &mut page)?;
    calls(&cluster, &mut page)?;
    denied(&cluster, &mut page)?;
    strict(&cluster, &mut page)?;
    on_the_network(&cluster, &mut page)?;
    open_connection(&cluster, &mut page)?;
    drop((shop, outside));
    page.close()
}

fn apps(nodes: &[String]) -> [App<'_>; 6] {
    let app = |name, version, node: usize, serves| App {
        namespace: SHOP,
        name,
        version,
        replicas: 1,
        node: nodes.get(node).map(String::as_str),
        serves,
    };
    [
        app("web", "v1", 0, Serves::Http),
        app("catalog", "v1", 0, Serves::Http),
        app("catalog", "v2", 1, Serves::Http),
        app("orders", "v1", 1, Serves::Http),
        app("cache", "v1", 1, Serves::Greeting),
        app("visitor", "v1", 1, Serves::Http),
    ]
}

fn start_shop<'a>(
    cluster: &'a Cluster,
    page: &mut Page,
) -> Result<(
    super::commands::Namespace<'a>,
    super::commands::Namespace<'a>,
)> {
    page.step("A shop of four services on the nodes of the cluster");
    let shop = cluster.namespace(SHOP, Membership::InMesh)?;
    let outside = cluster.namespace(OUTSIDE, Membership::Outside)?;
    for app in apps(&cluster.nodes) {
        match app.name {
            "orders" => cluster.apply(&app.stateful_manifests())?,
            _ => cluster.apply(&app.manifests())?,
        }
    }
    for (name, node) in [("stranger", 0), ("shelf", 1)] {
        cluster.apply(&App::on(OUTSIDE, name, &cluster.nodes[node]).manifests())?;
        cluster.rolled_out(OUTSIDE, &format!("deployment/{name}-v1"), ROLLOUT)?;
    }
    let mut rows = vec![
        ["service", "version", "kind", "node"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for app in apps(&cluster.nodes) {
        let (workload, kind) = match (app.name, app.serves) {
            ("orders", _) => ("statefulset/orders".to_owned(), "StatefulSet, headless"),
            (_, Serves::Greeting) => (
                format!("deployment/{}", app.deployment()),
                "TCP, server first",
            ),
            _ => (format!("deployment/{}", app.deployment()), "HTTP"),
        };
        cluster.rolled_out(SHOP, &workload, ROLLOUT)?;
        let node = app.node.unwrap_or_default();
        rows.push(
            [app.name, app.version, kind, node]
                .map(str::to_owned)
                .to_vec(),
        );
    }
    page.table(&rows);
    page.claim(true, "every pod passes its readiness probe");
    Ok((shop, outside))
}

fn pod(cluster: &Cluster, namespace: &str, app: &str) -> Result<String> {
    let selector = format!("app={app}");
    let pods = cluster.get(&["pods", "-n", namespace, "-l", &selector])?;
    pods.first()
        .and_then(name)
        .with_context(|| format!("no pod of {app}"))
}

fn call(cluster: &Cluster, from: &str, to: &str, more: &[&str]) -> Result<Report> {
    let pod = pod(cluster, SHOP, from)?;
    cluster.calls(SHOP, &pod, &[&[to], more].concat()).report()
}

/// Who called whom, from the access logs of all nodes.
fn seen(cluster: &Cluster) -> Result<BTreeSet<Seen>> {
    let mut all = BTreeSet::new();
    for node in &cluster.nodes {
        for line in cluster.proxy_log(node)?.lines() {
            let field = |name: &str| {
                let start = line.find(&format!(" {name}=\""))? + name.len() + 3;
                let rest = line.get(start..)?;
                rest.split('"').next()
            };
            let outbound = field("direction") == Some("outbound");
            let ours = field("src.namespace") == Some(SHOP) && field("dst.namespace") == Some(SHOP);
            if !outbound || !ours {
                continue;
            }
            let text = |name: &str| field(name).unwrap_or("-").to_owned();
            let account = |name: &str| {
                let identity = text(name);
                identity.rsplit('/').next().unwrap_or_default().to_owned()
            };
            all.insert(Seen {
                from: text("src.workload"),
                to: text("dst.workload"),
                path: if line.contains(" dst.hbone_addr=") {
                    "tunnel"
                } else {
                    "plain"
                },
                client: account("src.identity"),
                server: account("dst.identity"),
            });
        }
    }
    Ok(all)
}

fn calls(cluster: &Cluster, page: &mut Page) -> Result<()> {
    page.step("Who calls whom: by which path, and with which identities");
    let many = ["--most", "40", "--callers", "4"];
    for (from, to) in [
        ("web", "catalog:80"),
        ("web", "orders-0.orders:8080"),
        ("catalog", "orders:8080"),
    ] {
        let report = call(cluster, from, to, &many)?;
        let claim = format!(
            "{from} calls {to} by its name: {} of 40 answered",
            report.answered
        );
        page.claim(report.answered == 40 && report.failed == 0, &claim);
    }
    let web = pod(cluster, SHOP, "web")?;
    let greeting = ["/usr/local/bin/traffic", "greet", "cache:80"];
    let greeted = cluster.exec(SHOP, &web, &greeting);
    page.claim(
        greeted.is_ok(),
        "web is greeted by cache, which sends first",
    );
    paths(cluster, page)
}

/// Shows who called whom, and claims what must be among it.
fn paths(cluster: &Cluster, page: &mut Page) -> Result<()> {
    thread::sleep(Duration::from_secs(1));
    let seen = seen(cluster)?;
    let mut rows = vec![
        [
            "from",
            "to",
            "path",
            "client's identity",
            "server's identity",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    rows.extend(seen.iter().map(|one| {
        let path = one.path.to_owned();
        [&one.from, &one.to, &path, &one.client, &one.server]
            .map(Clone::clone)
            .to_vec()
    }));
    page.table(&rows);
    let between = |from: &str, to: &str| {
        let found = seen
            .iter()
            .find(|one| one.from.starts_with(from) && one.to.starts_with(to));
        found.cloned()
    };
    let canary = between("web", "catalog-v1").is_some() && between("web", "catalog-v2").is_some();
    page.claim(
        canary,
        "web reaches both versions of catalog, the canary among them",
    );
    let orders = between("web", "orders-0");
    let proved = orders
        .as_ref()
        .is_some_and(|one| one.path == "tunnel" && one.client == "web" && one.server == "orders");
    page.claim(
        proved,
        "between nodes, calls are in tunnels that prove both identities",
    );
    Ok(())
}

fn denied(cluster: &Cluster, page: &mut Page) -> Result<()> {
    page.step("A policy: only web may call orders");
    cluster.apply(&shop::allow_only(SHOP, "orders", "web"))?;
    let in_force = wait_for("the policy", Duration::from_secs(20), || {
        let refused = call(cluster, "visitor", "orders-0.orders:8080", &["--most", "5"])?;
        Ok(refused.answered == 0)
    });
    page.claim(
        in_force.is_ok(),
        "visitor is denied: its connections are reset",
    );
    let allowed = call(cluster, "web", "orders-0.orders:8080", &["--most", "20"])?;
    page.claim(allowed.failed == 0, "web still calls orders");
    Ok(())
}

fn strict(cluster: &Cluster, page: &mut Page) -> Result<()> {
    page.step("STRICT: no plaintext into the shop");
    cluster.apply(&shop::strict(SHOP))?;
    let stranger = pod(cluster, OUTSIDE, "stranger")?;
    let to = format!("catalog.{SHOP}:80");
    let refused = wait_for("the policy", Duration::from_secs(20), || {
        let report = cluster
            .calls(OUTSIDE, &stranger, &[&to, "--most", "5"])
            .report()?;
        Ok(report.answered == 0)
    });
    page.claim(refused.is_ok(), "a pod outside of the mesh is refused");
    thread::sleep(Duration::from_secs(5));
    let pods = cluster.get(&["pods", "-n", SHOP])?;
    let ready = pods.iter().all(|pod| {
        let containers = pod["status"]["containerStatuses"].as_array();
        containers.is_some_and(|all| all.iter().all(|one| one["ready"] == true))
    });
    page.claim(
        ready,
        "kubelet's probes still pass: every pod is ready after 5 s",
    );
    Ok(())
}

fn on_the_network(cluster: &Cluster, page: &mut Page) -> Result<()> {
    page.step("What a listener between the nodes sees");
    let node = &cluster.nodes[1];
    let sniffer = match cluster.sniffer(node) {
        Ok(sniffer) => sniffer,
        Err(error) => {
            page.prose(&format!(
                "Left out: the link of the node cannot be listened to ({error:#})."
            ));
            return Ok(());
        }
    };
    let shelf = format!("shelf.{OUTSIDE}:80");
    let stranger = pod(cluster, OUTSIDE, "stranger")?;
    cluster
        .calls(OUTSIDE, &stranger, &[&shelf, "--most", "50"])
        .report()?;
    let outside = sniffer.finish()?;
    let sniffer = cluster.sniffer(node)?;
    let report = call(cluster, "web", "orders-0.orders:8080", &["--most", "50"])?;
    let inside = sniffer.finish()?;
    let claim = format!(
        "without the mesh it reads the calls: {} packets with the marker",
        outside.marker_packets
    );
    page.claim(outside.marker_packets > 0, &claim);
    let claim = format!(
        "with the mesh it reads none: 0 of {} packets, {} calls",
        inside.packets, report.answered
    );
    let hidden = inside.marker_packets == 0 && inside.packets > 0 && report.answered == 50;
    page.claim(hidden, &claim);
    Ok(())
}

fn open_connection(cluster: &Cluster, page: &mut Page) -> Result<()> {
    page.step("A policy change reaches open connections");
    let web = pod(cluster, SHOP, "web")?;
    let flags = ["catalog:80", "--keep", "--pause", "50", "--seconds", "20"];
    let calls = cluster.calls(SHOP, &web, &flags);
    thread::sleep(Duration::from_secs(5));
    cluster.apply(&shop::allow_only(SHOP, "catalog", "orders"))?;
    let report = calls.report()?;
    let claim = format!(
        "the open connection was used for {} calls, and ended with the change",
        report.answered
    );
    page.claim(report.answered > 0 && report.failed > 0, &claim);
    Ok(())
}
