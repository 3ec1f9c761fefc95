//! The client against a control plane that does what the test tells it.

mod demanding;
mod plane;
mod proving;
mod pushing;
mod reconnecting;
mod refusing;
mod settings;

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::plane::{Plane, Session};
use super::*;
use mesh::Change;
use telemetry::XdsMetrics;

/// A client that runs, and its control plane.
struct World {
    plane: Plane,
    events: mpsc::Receiver<Event>,
    metrics: XdsMetrics,
    demand: Option<Demand>,
    client: JoinHandle<()>,
}

impl World {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::around(Plane::start().await, change)
    }

    fn around(plane: Plane, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(&plane.url());
        change(&mut config);
        let metrics = XdsMetrics::default();
        let (client, events) = Client::new(config, metrics.clone()).unwrap();
        Self {
            plane,
            events,
            metrics,
            demand: client.demand(),
            client: tokio::spawn(client.run()),
        }
    }

    /// The next stream that the client opens.
    async fn session(&mut self) -> Session {
        self.plane.session().await
    }

    /// The next stream, when its first requests were read.
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

    /// Nothing is told as long as the control plane takes for a round trip.
    fn nothing_told(&mut self) {
        assert!(self.events.try_recv().is_err(), "something was told");
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
        metadata: [("NETWORK".to_owned(), "net".into())].into(),
    };
    Config::new(url, Root::System, node)
}

/// What has to happen, and soon.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("it did not happen")
}

/// What a list of changes says, in short: `+` is there, `-` is gone.
fn told(changes: &[Change]) -> Vec<String> {
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
