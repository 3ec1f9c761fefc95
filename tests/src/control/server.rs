//! The servers of the control plane: one on the loopback address of each node.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use super::authority::Authority;
use super::state::{ADDRESS, AnswerMode, State, VersionedResource};
use crate::cleanup;
use crate::net::{Node, World};
use api::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Wire,
};
use api::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateServiceServer, SERVICE_NAME as AUTHORITY,
};

/// The port of the control plane on the loopback address of each node.
pub const PORT: u16 = 15012;
/// The token that proxies must send.
const TOKEN: &str = "token-of-the-node";
/// The length of the queue of responses to a proxy.
const QUEUE: usize = 16;

/// A control plane. Its servers stop when it is dropped.
#[derive(Debug)]
pub struct ControlPlane {
    /// The resources that it serves.
    pub state: State,
    directory: PathBuf,
    servers: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlPlane {
    /// Starts a server on each node. All servers have the same resources.
    ///
    /// # Errors
    /// When a file cannot be written or a port cannot be bound.
    pub fn start(world: &World) -> Result<Self> {
        let directory = world.directory().join("control");
        {
            let _guard = cleanup::creation_guard();
            std::fs::create_dir_all(&directory)
                .context("creating the control plane's directory")?;
        }
        let authority = Arc::new(Authority::new()?);
        std::fs::write(directory.join("root.pem"), authority.root_pem())
            .context("writing the root certificate")?;
        std::fs::write(directory.join("token"), TOKEN).context("writing the token")?;
        let state = State::default();
        let servers = world
            .nodes()
            .iter()
            .map(|node| serve(node, &state, &authority));
        Ok(Self {
            servers: servers.collect::<Result<_>>()?,
            state,
            directory,
        })
    }

    /// The environment of a proxy, as Istio's chart sets it.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        let path = |name: &str| self.directory.join(name).display().to_string();
        let address = format!("https://127.0.0.1:{PORT}");
        let variables = [
            ("XDS_ADDRESS", address.clone()),
            ("CA_ADDRESS", address),
            ("XDS_ROOT_CA", path("root.pem")),
            ("CA_ROOT_CA", path("root.pem")),
            ("ZTUNNEL_MESH_ROOTS", path("root.pem")),
            ("ALT_XDS_HOSTNAME", super::authority::NAME.to_owned()),
            ("ALT_CA_HOSTNAME", super::authority::NAME.to_owned()),
            ("AUTH_TOKEN", path("token")),
        ];
        let owned = variables.map(|(name, value)| (name.to_owned(), value));
        owned.into()
    }

    /// The directory with the root certificate and the token.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Stops the servers.
    pub fn stop(&mut self) {
        self.servers.clear();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(node: &Node, state: &State, authority: &Arc<Authority>) -> Result<Running> {
    let (stop, stopped) = oneshot::channel();
    let (started, starting) = std::sync::mpsc::sync_channel(1);
    let (state, authority) = (state.clone(), authority.clone());
    let thread = node.host.namespace.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(anyhow!(error)))),
        };
        runtime.block_on(async {
            let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
            match tokio::net::TcpListener::bind(address).await {
                Ok(listener) => {
                    drop(started.send(Ok(())));
                    if let Err(error) = run(listener, state, authority, stopped).await {
                        eprintln!("the control plane of the test has failed: {error:#}");
                    }
                }
                Err(error) => drop(started.send(Err(anyhow!(error)))),
            }
        });
    })?;
    starting
        .recv()
        .context("the control plane's thread ended")??;
    Ok(Running {
        stop: Some(stop),
        thread: Some(thread),
    })
}

async fn run(
    listener: tokio::net::TcpListener,
    state: State,
    authority: Arc<Authority>,
    stopped: oneshot::Receiver<()>,
) -> Result<()> {
    let (certificate, key) = authority.server()?;
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
    let services = Services {
        discovery: AggregatedDiscoveryServiceServer::new(Discovery { state }),
        authority: IstioCertificateServiceServer::from_arc(authority),
    };
    let serving = Server::builder()
        .tls_config(tls)?
        .serve_with_incoming(services, TcpListenerStream::new(listener));
    tokio::select! {
        served = serving => Ok(served?),
        _dropped = stopped => Ok(()),
    }
}

/// Both services on one port, selected by the path.
#[derive(Clone)]
struct Services {
    discovery: AggregatedDiscoveryServiceServer<Discovery>,
    authority: IstioCertificateServiceServer<Authority>,
}

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let authority = format!("/{AUTHORITY}/");
        if request.uri().path().starts_with(&authority) {
            self.authority.call(request)
        } else {
            // Answers "unimplemented" to unknown paths.
            self.discovery.call(request)
        }
    }
}

/// Refuses requests without the token.
pub(super) fn check_token<T>(request: &Request<T>) -> Result<(), Status> {
    let sent = request.metadata().get("authorization");
    if sent.is_some_and(|value| value.as_bytes() == format!("Bearer {TOKEN}").as_bytes()) {
        Ok(())
    } else {
        Err(Status::unauthenticated("the token is missing or wrong"))
    }
}

#[derive(Debug)]
struct Discovery {
    state: State,
}

type Responses = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        check_token(&request)?;
        let (answers, outgoing) = mpsc::channel(QUEUE);
        let state = self.state.clone();
        tokio::spawn(async move {
            let subscriber = Subscriber {
                state,
                answers,
                sent: BTreeMap::new(),
                subscribed: None,
                nonce: 0,
            };
            subscriber.follow(request.into_inner()).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// The stream of one proxy: its subscriptions and the resources that were sent.
struct Subscriber {
    state: State,
    answers: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    /// The resources that the proxy holds, by type and name.
    sent: BTreeMap<String, BTreeMap<String, VersionedResource>>,
    /// The names of subscribed workloads and services; `None` if all are subscribed.
    subscribed: Option<BTreeSet<String>>,
    nonce: u64,
}

impl Subscriber {
    async fn follow(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let mut changes = self.state.changes();
        loop {
            let handled = tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.handle_request(request).await,
                    _ => break,
                },
                changed = changes.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.push_all().await
                }
            };
            if handled.is_none() {
                break;
            }
        }
    }

    /// Handles a request. `None` if the proxy has closed the stream.
    async fn handle_request(&mut self, request: DeltaDiscoveryRequest) -> Option<()> {
        if let Some(error) = request.error_detail.clone() {
            self.state.record_refusal(error.message);
        }
        let first = !self.sent.contains_key(&request.type_url);
        if first && request.resource_names_unsubscribe.contains(&"*".to_owned()) {
            self.subscribed = Some(BTreeSet::new());
            self.sent.insert(request.type_url.clone(), BTreeMap::new());
        }
        if request.type_url == ADDRESS && self.subscribed.is_some() {
            return self.handle_subscription(request).await;
        }
        if !first {
            return Some(());
        }
        // The resources that the proxy still holds in the current version.
        let now = self.state.of_type(&request.type_url);
        let held = request.initial_resource_versions;
        let kept = now.into_iter().filter(|(name, resource)| {
            held.get(name)
                .is_some_and(|version| *version == resource.version.to_string())
        });
        let mut previous: BTreeMap<_, _> = kept.collect();
        for name in held.into_keys() {
            previous
                .entry(name)
                .or_insert(VersionedResource::outdated());
        }
        self.sent.insert(request.type_url.clone(), previous);
        self.push(&request.type_url, true).await
    }

    async fn push_all(&mut self) -> Option<()> {
        let kinds: Vec<String> = self.sent.keys().cloned().collect();
        for kind in kinds {
            self.push(&kind, false).await?;
        }
        Some(())
    }

    /// Answers a subscription to single keys as istiod does: a service is sent with its backends, which
    /// are subscribed, too; a missing resource is sent as removed.
    async fn handle_subscription(&mut self, request: DeltaDiscoveryRequest) -> Option<()> {
        let mut names = request.resource_names_subscribe;
        names.retain(|name| name != "*");
        let subscribed = self.subscribed.get_or_insert_default();
        for name in &request.resource_names_unsubscribe {
            subscribed.remove(name);
        }
        if names.is_empty() {
            return Some(());
        }
        match self.state.record_fetch(&names) {
            AnswerMode::Immediate => {}
            AnswerMode::Delayed(time) => tokio::time::sleep(time).await,
            AnswerMode::Never => return Some(()),
        }
        let all = self.state.of_type(ADDRESS);
        let mut found = BTreeMap::new();
        let mut removed = Vec::new();
        for name in names {
            let hit = all
                .iter()
                .find(|(own, resource)| **own == name || resource.aliases.contains(&name));
            subscribed.insert(name.clone());
            let Some((own, resource)) = hit else {
                removed.push(name);
                continue;
            };
            let backends = all.iter().filter(|(_, other)| other.services.contains(own));
            found.extend(backends.map(|(name, resource)| (name.clone(), resource.clone())));
            found.insert(own.clone(), resource.clone());
        }
        subscribed.extend(found.keys().cloned());
        let resources = found
            .iter()
            .map(|(name, resource)| wire(ADDRESS, name, resource));
        let resources = resources.collect();
        self.sent
            .entry(ADDRESS.to_owned())
            .or_default()
            .extend(found);
        self.respond(ADDRESS, resources, removed).await
    }

    /// The subscribed resources of a type.
    fn subscribed_resources(&self, kind: &str) -> BTreeMap<String, VersionedResource> {
        let mut all = self.state.of_type(kind);
        if let Some(subscribed) = self.subscribed.as_ref().filter(|_| kind == ADDRESS) {
            all.retain(|name, resource| {
                subscribed.contains(name)
                    || resource.services.iter().any(|of| subscribed.contains(of))
            });
        }
        all
    }

    /// Sends the new and the removed resources of a type. The first response of a stream may be empty.
    async fn push(&mut self, kind: &str, first: bool) -> Option<()> {
        let now = self.subscribed_resources(kind);
        let previous = self.sent.insert(kind.to_owned(), now.clone())?;
        let changed = now
            .iter()
            .filter(|(name, resource)| previous.get(*name) != Some(resource));
        let resources: Vec<Wire> = changed
            .map(|(name, resource)| wire(kind, name, resource))
            .collect();
        let removed = previous.keys().filter(|name| !now.contains_key(*name));
        let removed_resources: Vec<String> = removed.cloned().collect();
        if resources.is_empty() && removed_resources.is_empty() && !first {
            return Some(());
        }
        self.respond(kind, resources, removed_resources).await
    }

    async fn respond(
        &mut self,
        kind: &str,
        resources: Vec<Wire>,
        removed_resources: Vec<String>,
    ) -> Option<()> {
        self.nonce += 1;
        let response = DeltaDiscoveryResponse {
            system_version_info: String::new(),
            resources,
            type_url: kind.to_owned(),
            nonce: self.nonce.to_string(),
            removed_resources,
        };
        self.answers.send(Ok(response)).await.ok()
    }
}

fn wire(kind: &str, name: &str, resource: &VersionedResource) -> Wire {
    Wire {
        version: resource.version.to_string(),
        resource: Some(prost_types::Any {
            type_url: kind.to_owned(),
            value: resource.bytes.clone(),
        }),
        name: name.to_owned(),
        aliases: resource.aliases.clone(),
    }
}
