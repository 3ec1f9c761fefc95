//! The servers: one in the namespace of every node, at the node's loopback address.

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
use super::state::{ADDRESS, Manner, State, Told};
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

/// Where a node's proxy finds it: this port of the node's loopback address.
pub const PORT: u16 = 15012;
/// The token that proxies have to send.
const TOKEN: &str = "token-of-the-node";
/// Answers that a proxy has not read yet.
const QUEUE: usize = 16;

/// A control plane; ends when it is dropped.
#[derive(Debug)]
pub struct ControlPlane {
    /// What it tells.
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
    /// Starts one server a node, all of them telling the same.
    ///
    /// # Errors
    /// When a file cannot be written or a port not be bound.
    pub fn start(world: &World) -> Result<Self> {
        let directory = world.directory().join("control");
        {
            let _making = cleanup::making();
            std::fs::create_dir_all(&directory).context("making the control plane's directory")?;
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

    /// What Istio's chart would tell a proxy of a node in its environment.
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

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Ends the servers: proxies are on their own from here on.
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
                        eprintln!("the test's control plane ended: {error:#}");
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

/// Both services at one port, told apart by the path.
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
            // Which answers "unimplemented" to what it does not know.
            self.discovery.call(request)
        }
    }
}

/// Whoever has no token is nobody.
pub(super) fn check_token<T>(request: &Request<T>) -> Result<(), Status> {
    let sent = request.metadata().get("authorization");
    if sent.is_some_and(|value| value.as_bytes() == format!("Bearer {TOKEN}").as_bytes()) {
        Ok(())
    } else {
        Err(Status::unauthenticated("no token, or not the node's"))
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
                known: BTreeMap::new(),
                single: None,
                nonce: 0,
            };
            subscriber.follow(request.into_inner()).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// One proxy's stream: what it has subscribed to and was told.
struct Subscriber {
    state: State,
    answers: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    known: BTreeMap<String, BTreeMap<String, Told>>,
    /// What it wants to know of workloads and services; none for all of it.
    single: Option<BTreeSet<String>>,
    nonce: u64,
}

impl Subscriber {
    async fn follow(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let mut changes = self.state.changes();
        loop {
            let told = tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.heed(request).await,
                    _ => break,
                },
                changed = changes.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.tell_all().await
                }
            };
            if told.is_none() {
                break;
            }
        }
    }

    /// None: the proxy is gone.
    async fn heed(&mut self, request: DeltaDiscoveryRequest) -> Option<()> {
        if let Some(error) = request.error_detail.clone() {
            self.state.refused(error.message);
        }
        let first = !self.known.contains_key(&request.type_url);
        if first && request.resource_names_unsubscribe.contains(&"*".to_owned()) {
            self.single = Some(BTreeSet::new());
            self.known.insert(request.type_url.clone(), BTreeMap::new());
        }
        if request.type_url == ADDRESS && self.single.is_some() {
            return self.answer(request).await;
        }
        if !first {
            return Some(());
        }
        // What it has kept from an earlier stream, as far as it is what we would tell.
        let now = self.state.of_type(&request.type_url);
        let held = request.initial_resource_versions;
        let kept = now.into_iter().filter(|(name, told)| {
            held.get(name)
                .is_some_and(|version| *version == told.version.to_string())
        });
        let mut known: BTreeMap<_, _> = kept.collect();
        for name in held.into_keys() {
            known.entry(name).or_insert(Told::nothing());
        }
        self.known.insert(request.type_url.clone(), known);
        self.tell(&request.type_url, true).await
    }

    async fn tell_all(&mut self) -> Option<()> {
        let kinds: Vec<String> = self.known.keys().cloned().collect();
        for kind in kinds {
            self.tell(&kind, false).await?;
        }
        Some(())
    }

    /// Answers questions for single keys, as istiod does: with a service come its backends, all of
    /// it counts as subscribed, and what is not there counts as removed.
    async fn answer(&mut self, request: DeltaDiscoveryRequest) -> Option<()> {
        let mut names = request.resource_names_subscribe;
        names.retain(|name| name != "*");
        let single = self.single.get_or_insert_default();
        for name in &request.resource_names_unsubscribe {
            single.remove(name);
        }
        if names.is_empty() {
            return Some(());
        }
        match self.state.hear(&names) {
            Manner::Prompt => {}
            Manner::Slow(time) => tokio::time::sleep(time).await,
            Manner::Silent => return Some(()),
        }
        let all = self.state.of_type(ADDRESS);
        let mut found = BTreeMap::new();
        let mut removed = Vec::new();
        for name in names {
            let hit = all
                .iter()
                .find(|(own, told)| **own == name || told.aliases.contains(&name));
            single.insert(name.clone());
            let Some((own, told)) = hit else {
                removed.push(name);
                continue;
            };
            let backends = all.iter().filter(|(_, other)| other.backs.contains(own));
            found.extend(backends.map(|(name, told)| (name.clone(), told.clone())));
            found.insert(own.clone(), told.clone());
        }
        single.extend(found.keys().cloned());
        let resources = found.iter().map(|(name, told)| wire(ADDRESS, name, told));
        let resources = resources.collect();
        self.known
            .entry(ADDRESS.to_owned())
            .or_default()
            .extend(found);
        self.respond(ADDRESS, resources, removed).await
    }

    /// What the proxy wants to know of a type.
    fn wanted(&self, kind: &str) -> BTreeMap<String, Told> {
        let mut all = self.state.of_type(kind);
        if let Some(single) = self.single.as_ref().filter(|_| kind == ADDRESS) {
            all.retain(|name, told| {
                single.contains(name) || told.backs.iter().any(|of| single.contains(of))
            });
        }
        all
    }

    /// Tells what is new of a type, and what is gone; the first time also that there is nothing.
    async fn tell(&mut self, kind: &str, first: bool) -> Option<()> {
        let now = self.wanted(kind);
        let known = self.known.insert(kind.to_owned(), now.clone())?;
        let fresh = now
            .iter()
            .filter(|(name, told)| known.get(*name) != Some(told));
        let resources: Vec<Wire> = fresh.map(|(name, told)| wire(kind, name, told)).collect();
        let gone = known.keys().filter(|name| !now.contains_key(*name));
        let removed_resources: Vec<String> = gone.cloned().collect();
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

fn wire(kind: &str, name: &str, told: &Told) -> Wire {
    Wire {
        version: told.version.to_string(),
        resource: Some(prost_types::Any {
            type_url: kind.to_owned(),
            value: told.bytes.clone(),
        }),
        name: name.to_owned(),
        aliases: told.aliases.clone(),
    }
}
