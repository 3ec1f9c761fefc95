//! The client against a scripted control plane.

mod authentication;
mod control_plane;
mod on_demand;
mod pushes;
mod reconnects;
mod refused_resources;
mod settings;

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::control_plane::{ControlPlane, Session};
use super::*;
use mesh::Change;
use telemetry::XdsMetrics;

/// A running client and its control plane.
struct World {
    control_plane: ControlPlane,
    events: mpsc::Receiver<Event>,
    metrics: XdsMetrics,
    fetcher: Option<OnDemandFetcher>,
    client: JoinHandle<()>,
}

impl World {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::with_control_plane(ControlPlane::start().await, change)
    }

    fn with_control_plane(control_plane: ControlPlane, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(&control_plane.url());
        change(&mut config);
        let metrics = XdsMetrics::default();
        let (client, events) = Client::new(config, metrics.clone()).unwrap();
        Self {
            control_plane,
            events,
            metrics,
            fetcher: client.fetcher(),
            client: tokio::spawn(client.run()),
        }
    }

    /// The next stream that the client opens.
    async fn session(&mut self) -> Session {
        self.control_plane.session().await
    }

    /// The next stream, after its two first requests were read.
    async fn subscribed(&mut self) -> Session {
        let mut session = self.session().await;
        session.request().await;
        session.request().await;
        session
    }

    async fn batch(&mut self) -> Batch {
        match soon(self.events.recv()).await {
            Some(Event::Changes(batch)) => batch,
            other => panic!("{other:?}"),
        }
    }

    /// The changes of the next push.
    async fn changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        loop {
            let mut batch = self.batch().await;
            changes.append(&mut batch.changes);
            if batch.ends_push {
                return changes;
            }
        }
    }

    async fn synced(&mut self) {
        match soon(self.events.recv()).await {
            Some(Event::Synced) => {}
            other => panic!("{other:?}"),
        }
    }

    /// Asserts that the client has sent no event.
    fn assert_no_event(&mut self) {
        let event = self.events.try_recv();
        assert!(event.is_err(), "unexpected event: {event:?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.client.abort();
    }
}

fn config(url: &str) -> Config {
    let node = Node {
        instance_ip: "10.0.0.9".to_owned(),
        pod: "ztunnel-x".to_owned(),
        namespace: "istio-system".to_owned(),
        node: "node-a".to_owned(),
        cluster_id: "c".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        version: "v1.2.3".into(),
        metadata: [("NETWORK".to_owned(), "net".into())].into(),
    };
    Config::new(url, Root::System, node)
}

/// Awaits a future with a time limit of 20 seconds.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("timed out")
}

/// A list of changes in short: `+` added or replaced, `-` removed, `?` a placeholder, `!` a placeholder
/// removed.
fn summary(changes: &[Change]) -> Vec<String> {
    let short = |change: &Change| match change {
        Change::Workload(workload) => format!("+{}", workload.uid),
        Change::RemoveWorkload(uid) => format!("-{uid}"),
        Change::Service(service) => format!("+{}", service.key()),
        Change::RemoveService(key) => format!("-{key}"),
        Change::Policy(policy) => format!("+{}", policy.key()),
        Change::RemovePolicy(key) => format!("-{key}"),
        Change::Placeholder { name, addresses } => {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            format!("?{name} at {}", addresses.join(", "))
        }
        Change::RemovePlaceholder(name) => format!("!{name}"),
    };
    changes.iter().map(short).collect()
}
