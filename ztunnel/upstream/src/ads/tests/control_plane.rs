//! A scripted control plane on the generated server: the test receives each stream, reads its requests
//! and writes its responses.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use prost_types::Any;
use rustls::{ServerConfig, ServerConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::soon;
use crate::ads::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use api::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use api::istio::{security, workload};

type ResponseResult = Result<DeltaDiscoveryResponse, Status>;

pub(super) struct ControlPlane {
    pub(super) address: SocketAddr,
    scheme: &'static str,
    sessions: mpsc::Receiver<Session>,
    refusal: Arc<Mutex<Option<Status>>>,
    tasks: Vec<JoinHandle<()>>,
}

/// One stream of a client. Dropping it ends the stream without an error.
pub(super) struct Session {
    pub(super) metadata: MetadataMap,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<ResponseResult>,
}

struct Service {
    sessions: mpsc::Sender<Session>,
    refusal: Arc<Mutex<Option<Status>>>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = ReceiverStream<ResponseResult>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        if let Some(status) = self.refusal.lock().unwrap().take() {
            return Err(status);
        }
        let (responses, outgoing) = mpsc::channel(16);
        let session = Session {
            metadata: request.metadata().clone(),
            requests: request.into_inner(),
            responses,
        };
        self.sessions.send(session).await.unwrap();
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

impl ControlPlane {
    pub(super) async fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    /// Starts with TLS.
    pub(super) async fn with_tls(config: Arc<ServerConfig>) -> Self {
        let mut control_plane = Self::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plaintext = control_plane.address;
        control_plane.address = listener.local_addr().unwrap();
        control_plane.scheme = "https";
        let tls = tokio::spawn(terminate_tls(listener, plaintext, config));
        control_plane.tasks.push(tls);
        control_plane
    }

    pub(super) fn on(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let (sessions, opened) = mpsc::channel(16);
        let refusal = Arc::new(Mutex::new(None));
        let service = AggregatedDiscoveryServiceServer::new(Service {
            sessions,
            refusal: refusal.clone(),
        })
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
        Self {
            address,
            scheme: "http",
            sessions: opened,
            refusal,
            tasks: vec![tokio::spawn(serve(listener, service))],
        }
    }

    pub(super) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub(super) async fn session(&mut self) -> Session {
        soon(self.sessions.recv()).await.unwrap()
    }

    /// Refuses the next stream.
    pub(super) fn refuse(&self, status: Status) {
        *self.refusal.lock().unwrap() = Some(status);
    }
}

async fn serve(listener: TcpListener, service: AggregatedDiscoveryServiceServer<Service>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service.clone();
        let answer = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let mut service = service.clone();
            async move { tonic::codegen::Service::call(&mut service, request).await }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), answer);
        // A client may close its connection at any time.
        tokio::spawn(async move { drop(connection.await) });
    }
}

/// Terminates TLS in front of a plaintext server.
async fn terminate_tls(listener: TcpListener, plaintext: SocketAddr, config: Arc<ServerConfig>) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let config = config.clone();
        tokio::spawn(async move { drop(terminate_connection(client, plaintext, config).await) });
    }
}

async fn terminate_connection(
    mut client: TcpStream,
    plaintext: SocketAddr,
    config: Arc<ServerConfig>,
) -> io::Result<()> {
    let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut server = TcpStream::connect(plaintext).await?;
    let (mut encrypted, mut decrypted) = (vec![0; 16384], vec![0; 16384]);
    loop {
        while session.wants_write() {
            let mut out = Vec::new();
            session.write_tls(&mut out)?;
            client.write_all(&out).await?;
        }
        tokio::select! {
            read = client.read(&mut encrypted) => {
                let mut bytes = &encrypted[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                while !bytes.is_empty() {
                    session.read_tls(&mut bytes)?;
                    session.process_new_packets().map_err(io::Error::other)?;
                    let mut out = vec![0; 65536];
                    while let Ok(read @ 1..) = session.reader().read(&mut out) {
                        server.write_all(&out[..read]).await?;
                    }
                }
            }
            read = server.read(&mut decrypted), if !session.is_handshaking() => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                session.writer().write_all(&decrypted[..read])?;
            }
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Session {
    pub(super) async fn request(&mut self) -> DeltaDiscoveryRequest {
        soon(self.requests.message()).await.unwrap().unwrap()
    }

    pub(super) async fn respond(&self, response: DeltaDiscoveryResponse) {
        soon(self.responses.send(Ok(response))).await.unwrap();
    }

    /// Sends a response of one type.
    pub(super) async fn push(
        &self,
        type_url: &str,
        nonce: &str,
        resources: Vec<Resource>,
        removed: &[&str],
    ) {
        self.respond(DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            nonce: nonce.to_owned(),
            resources,
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryResponse::default()
        })
        .await;
    }

    pub(super) async fn addresses(&self, nonce: &str, resources: Vec<Resource>) {
        self.push(ADDRESS_TYPE, nonce, resources, &[]).await;
    }

    pub(super) async fn policies(&self, nonce: &str, resources: Vec<Resource>) {
        self.push(AUTHORIZATION_TYPE, nonce, resources, &[]).await;
    }

    /// Asserts that the next request only acknowledges this response.
    pub(super) async fn acked(&mut self, type_url: &str, nonce: &str) {
        let expected = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            response_nonce: nonce.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        assert_eq!(self.request().await, expected);
    }

    /// Asserts that the next request refuses this response, and returns its message.
    pub(super) async fn nacked(&mut self, type_url: &str, nonce: &str) -> String {
        let request = self.request().await;
        assert_eq!(
            (&*request.type_url, &*request.response_nonce),
            (type_url, nonce)
        );
        let detail = request.error_detail.expect("the response must be refused");
        assert_eq!(detail.code, 3);
        detail.message
    }

    /// Ends the stream with an error.
    pub(super) async fn fail(self, status: Status) {
        soon(self.responses.send(Err(status))).await.unwrap();
    }
}

pub(super) fn resource(name: &str, version: &str, type_url: &str, value: Vec<u8>) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(Any {
            type_url: type_url.to_owned(),
            value,
        }),
        aliases: Vec::new(),
    }
}

/// A workload `c//v1/Pod/default/<name>` with an address.
pub(super) fn pod(name: &str, version: &str, address: [u8; 4]) -> Resource {
    let uid = uid(name);
    let workload = workload::Workload {
        uid: uid.clone(),
        name: name.to_owned(),
        addresses: vec![address.to_vec().into()],
        ..workload::Workload::default()
    };
    let kind = workload::address::Type::Workload(workload);
    let message = workload::Address { r#type: Some(kind) };
    resource(&uid, version, ADDRESS_TYPE, message.encode_to_vec())
}

pub(super) fn uid(name: &str) -> String {
    format!("c//v1/Pod/default/{name}")
}

/// A service `default/<hostname>`.
pub(super) fn service(hostname: &str, version: &str) -> Resource {
    let service = workload::Service {
        namespace: "default".to_owned(),
        hostname: hostname.to_owned(),
        ..workload::Service::default()
    };
    let kind = workload::address::Type::Service(service);
    let message = workload::Address { r#type: Some(kind) };
    let name = format!("default/{hostname}");
    resource(&name, version, ADDRESS_TYPE, message.encode_to_vec())
}

/// A policy `default/<name>`.
pub(super) fn policy(name: &str, action: i32) -> Resource {
    let policy = security::Authorization {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        action,
        ..security::Authorization::default()
    };
    let full = format!("default/{name}");
    resource(&full, "1", AUTHORIZATION_TYPE, policy.encode_to_vec())
}
