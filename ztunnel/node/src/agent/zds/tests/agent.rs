//! A simulated istio-cni: the same socket and the same messages.

use std::io::{IoSlice, Read as _};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use prost::Message as _;
use socket2::{Domain, SockAddr, Socket, Type};

use super::super::Config;
use super::PATIENCE;
use api::istio::workload::zds::workload_request::Payload;
use api::istio::workload::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, Version, WorkloadInfo, WorkloadRequest,
    WorkloadResponse, ZdsHello, workload_response,
};

/// The agent's socket.
pub(super) struct Agent {
    listener: Socket,
    config: Config,
    _directory: Option<tempfile::TempDir>,
}

impl Agent {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            socket: directory.path().join("ztunnel.sock"),
            retry_min: Duration::from_millis(5),
            retry_max: Duration::from_millis(20),
        };
        Self {
            _directory: Some(directory),
            ..Self::at(config)
        }
    }

    /// An agent at the path of a previous one.
    pub(super) fn at(config: Config) -> Self {
        let path = &config.socket;
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        listener.bind(&SockAddr::unix(path).unwrap()).unwrap();
        listener.listen(1).unwrap();
        // `accept` uses this timeout.
        listener.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            listener,
            config,
            _directory: None,
        }
    }

    pub(super) fn config(&self) -> Config {
        self.config.clone()
    }

    /// Accepts the next connection and reads its hello message.
    pub(super) fn accept(&self) -> Connection {
        let (socket, _) = self.listener.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let connection = Connection(Arc::new(socket));
        let hello = ZdsHello::decode(&*connection.receive().unwrap()).unwrap();
        assert_eq!(hello.version(), Version::V1);
        connection
    }
}

/// A connection of the client's.
#[derive(Clone)]
pub(super) struct Connection(Arc<Socket>);

impl Connection {
    pub(super) fn send(&self, request: &WorkloadRequest) {
        self.send_with(request, &[]);
    }

    /// Sends a request with descriptors.
    pub(super) fn send_with(&self, request: &WorkloadRequest, descriptors: &[&dyn AsFd]) {
        self.send_raw(&request.encode_to_vec(), descriptors);
    }

    pub(super) fn send_raw(&self, bytes: &[u8], descriptors: &[&dyn AsFd]) {
        let raw = |fd: &&dyn AsFd| fd.as_fd().as_raw_fd();
        let raw: Vec<RawFd> = descriptors.iter().map(raw).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights: &[_] = if raw.is_empty() { &[] } else { &rights };
        let part = [IoSlice::new(bytes)];
        let fd = self.0.as_raw_fd();
        let sent = sendmsg::<()>(fd, &part, rights, MsgFlags::MSG_NOSIGNAL, None).unwrap();
        assert_eq!(sent, bytes.len());
    }

    /// The text of the next answer; none when the client has closed the connection. The buffer is
    /// as large as istio-cni's.
    pub(super) fn answer(&self) -> Option<String> {
        let bytes = self.receive()?;
        let response = WorkloadResponse::decode(&*bytes).unwrap();
        let Some(workload_response::Payload::Ack(ack)) = response.payload else {
            panic!("no acknowledgement: {response:?}");
        };
        Some(ack.error)
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 1024];
        let length = (&*self.0).read(&mut buffer).unwrap();
        (length > 0).then(|| buffer[..length].to_vec())
    }

    /// Whether the connection is open and nothing has arrived.
    pub(super) fn is_silent(&self) -> bool {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 1];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let nothing = self.0.recv_with_flags(&mut buffer, flags);
        nothing.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// Whether the client has closed it.
    pub(super) fn is_closed(&self) -> bool {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 1];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        matches!(self.0.recv_with_flags(&mut buffer, flags), Ok(0))
    }
}

fn request(payload: Payload) -> WorkloadRequest {
    WorkloadRequest {
        payload: Some(payload),
    }
}

pub(super) fn add(uid: &str, namespace: &str, name: &str, account: &str) -> WorkloadRequest {
    let info = WorkloadInfo {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
    };
    request(Payload::Add(AddWorkload {
        uid: uid.to_owned(),
        workload_info: Some(info),
    }))
}

pub(super) fn add_without_info(uid: &str) -> WorkloadRequest {
    request(Payload::Add(AddWorkload {
        uid: uid.to_owned(),
        workload_info: None,
    }))
}

pub(super) fn keep(uid: &str) -> WorkloadRequest {
    request(Payload::Keep(KeepWorkload {
        uid: uid.to_owned(),
    }))
}

pub(super) fn del(uid: &str) -> WorkloadRequest {
    request(Payload::Del(DelWorkload {
        uid: uid.to_owned(),
    }))
}

pub(super) fn snapshot_sent() -> WorkloadRequest {
    request(Payload::SnapshotSent(SnapshotSent {}))
}
