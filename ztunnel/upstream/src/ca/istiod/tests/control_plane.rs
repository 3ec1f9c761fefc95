//! A control plane for tests: the generated server on loopback with TLS, an authority that signs every
//! request, and a script for other answers.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use prost_types::value::Kind;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer as Signer, KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
};
use socket2::{Domain, Socket, Type};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity as ServerIdentity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use api::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use api::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

/// An authority: of the mesh, or of the control plane's own certificate.
pub(super) struct Authority {
    pub(super) root: String,
    signer: Signer<'static, KeyPair>,
}

/// The content of a leaf certificate that a test may choose.
#[derive(Clone)]
pub(super) struct Leaf {
    pub(super) usages: Vec<ExtendedKeyUsagePurpose>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Default for Leaf {
    fn default() -> Self {
        Self {
            usages: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            not_before: SystemTime::now() - Duration::from_secs(60),
            not_after: SystemTime::now() + Duration::from_secs(3600),
        }
    }
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let (params, key) = ca_params(name);
        Self {
            root: params.self_signed(&key).unwrap().pem(),
            signer: Signer::new(params, key),
        }
    }

    /// An intermediate authority of this one; its `root` is its own certificate.
    pub(super) fn intermediate(&self, name: &str) -> Self {
        let (params, key) = ca_params(name);
        Self {
            root: params.signed_by(&key, &self.signer).unwrap().pem(),
            signer: Signer::new(params, key),
        }
    }

    /// Signs a request with the identity that it contains.
    pub(super) fn sign(&self, csr: &str, leaf: Leaf) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        request.params.extended_key_usages = leaf.usages;
        request.params.not_before = leaf.not_before.into();
        request.params.not_after = leaf.not_after.into();
        request.signed_by(&self.signer).unwrap().pem()
    }

    /// Signs a request for another identity.
    pub(super) fn sign_as(&self, csr: &str, uri: &str) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        request.params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        request.signed_by(&self.signer).unwrap().pem()
    }

    /// The control plane's own certificate with its key.
    fn server(&self, name: &str) -> ServerIdentity {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.signer).unwrap();
        ServerIdentity::from_pem(certificate.pem(), key.serialize_pem())
    }
}

fn ca_params(name: &str) -> (CertificateParams, KeyPair) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params, key)
}

/// A request that the control plane received.
#[derive(Clone)]
pub(super) struct ReceivedRequest {
    pub(super) csr: String,
    pub(super) validity: i64,
    pub(super) on_behalf_of: Option<String>,
    pub(super) headers: MetadataMap,
    pub(super) from: SocketAddr,
}

impl ReceivedRequest {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// The answer to a request, and the pause before it.
pub(super) type Script =
    dyn Fn(&ReceivedRequest) -> (Duration, Result<Vec<String>, Status>) + Send + Sync;

pub(super) struct ControlPlane {
    address: SocketAddr,
    reserved_port: Socket,
    pub(super) requests: Arc<Mutex<Vec<ReceivedRequest>>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl ControlPlane {
    /// Serves on a port of its own with a certificate of `authority` for `name`.
    pub(super) fn serve(authority: &Authority, name: &str, script: Box<Script>) -> Self {
        let port = "127.0.0.1:0".parse().unwrap();
        Self::serve_at(port, Some(authority.server(name)), script)
    }

    pub(super) fn serve_at(
        address: SocketAddr,
        identity: Option<ServerIdentity>,
        script: Box<Script>,
    ) -> Self {
        Self::serve_in(reserve(address), identity, script)
    }

    fn serve_in(
        reserved_port: Socket,
        identity: Option<ServerIdentity>,
        script: Box<Script>,
    ) -> Self {
        let address = reserved_port.local_addr().unwrap().as_socket().unwrap();
        let listening = reserve(address);
        listening.listen(128).unwrap();
        let listener = TcpListener::from(listening);
        let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener).unwrap());
        let requests = Arc::<Mutex<Vec<ReceivedRequest>>>::default();
        let service = IstioCertificateServiceServer::new(Service {
            requests: requests.clone(),
            script,
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let mut server = Server::builder();
        if let Some(identity) = identity {
            server = server
                .tls_config(ServerTlsConfig::new().identity(identity))
                .unwrap();
        }
        let task = tokio::spawn(async move {
            let stopped = async {
                let _closed = stopped.await;
            };
            server
                .serve_with_incoming_shutdown(service, incoming, stopped)
                .await
                .unwrap();
        });
        Self {
            address,
            reserved_port,
            requests,
            stop,
            task,
        }
    }

    /// Serves on the port of a stopped control plane.
    pub(super) fn serve_again(
        reserved_port: Socket,
        authority: &Authority,
        name: &str,
        script: Box<Script>,
    ) -> Self {
        Self::serve_in(reserved_port, Some(authority.server(name)), script)
    }

    pub(super) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(super) fn requests(&self) -> Vec<ReceivedRequest> {
        self.requests.lock().unwrap().clone()
    }

    /// Closes the listener and the connections. No other process can take the port until the returned
    /// socket is dropped.
    pub(super) async fn stop(self) -> Socket {
        drop(self.stop);
        self.task.await.unwrap();
        self.reserved_port
    }
}

/// A socket bound to an address that other processes cannot take (`SO_REUSEPORT`).
fn reserve(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

struct Service {
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
    script: Box<Script>,
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let from = request.remote_addr().unwrap();
        let headers = request.metadata().clone();
        let request = request.into_inner();
        let fields = request.metadata.map(|metadata| metadata.fields);
        let named = fields.and_then(|fields| fields.get("ImpersonatedIdentity").cloned());
        let received = ReceivedRequest {
            csr: request.csr,
            validity: request.validity_duration,
            on_behalf_of: named.map(|value| match value.kind {
                Some(Kind::StringValue(text)) => text,
                other => panic!("{other:?}"),
            }),
            headers,
            from,
        };
        self.requests.lock().unwrap().push(received.clone());
        let (pause, answer) = (self.script)(&received);
        tokio::time::sleep(pause).await;
        answer.map(|cert_chain| Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// A script that signs every request.
pub(super) fn signs(mesh: &Arc<Authority>) -> Box<Script> {
    let mesh = mesh.clone();
    Box::new(move |received| {
        let leaf = mesh.sign(&received.csr, Leaf::default());
        (Duration::ZERO, Ok(vec![leaf, mesh.root.clone()]))
    })
}

/// A script with other answers.
pub(super) fn answers(
    answer: impl Fn(&ReceivedRequest) -> Result<Vec<String>, Status> + Send + Sync + 'static,
) -> Box<Script> {
    Box::new(move |received| (Duration::ZERO, answer(received)))
}
