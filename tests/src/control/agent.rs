//! The node agent: announces the pods of a node to its proxy, with their network namespaces.

use std::io::IoSlice;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use prost::Message as _;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::net::Host;
use api::istio::workload::zds::workload_request::Payload;
use api::istio::workload::zds::workload_response::Payload as Answer;
use api::istio::workload::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest,
    WorkloadResponse, ZdsHello,
};

/// The time limit for a proxy to connect and to answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// A node agent, connected to one proxy at a time.
#[derive(Debug)]
pub struct NodeAgent {
    path: PathBuf,
    listener: Socket,
    proxy: Option<Socket>,
    /// The connection of the previous proxy, kept open without requests.
    previous: Option<Socket>,
}

impl NodeAgent {
    /// Listens at a path.
    ///
    /// # Errors
    /// When the socket cannot be bound.
    pub fn listen(path: &Path) -> Result<Self> {
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        listener
            .bind(&SockAddr::unix(path)?)
            .with_context(|| format!("listening at {}", path.display()))?;
        listener.listen(4)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            proxy: None,
            previous: None,
        })
    }

    /// The path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until a proxy connects and sends its hello. Closes the connection of the previous proxy.
    ///
    /// # Errors
    /// When no proxy connects in time, or its first packet is not a hello.
    pub fn accept_proxy(&mut self) -> Result<()> {
        self.proxy = None;
        self.accept()
    }

    /// As [`Self::accept_proxy`], but the connection of the previous proxy stays open.
    ///
    /// # Errors
    /// As [`Self::accept_proxy`].
    pub fn accept_standby(&mut self) -> Result<()> {
        self.previous = self.proxy.take();
        self.accept()
    }

    /// As [`Self::accept_proxy`], with another time limit. The connection of a standby that
    /// [`Self::accept_standby`] has accepted is closed, that of the proxy before it stays open.
    ///
    /// # Errors
    /// As [`Self::accept_proxy`].
    pub fn accept_within(&mut self, limit: Duration) -> Result<()> {
        self.proxy = None;
        self.accept_by(limit)
    }

    fn accept(&mut self) -> Result<()> {
        self.accept_by(TIMEOUT)
    }

    fn accept_by(&mut self, limit: Duration) -> Result<()> {
        let waiting = Instant::now();
        let proxy = loop {
            match self.listener.accept() {
                Ok((proxy, _)) => break proxy,
                Err(error) if waiting.elapsed() > limit => {
                    return Err(error).context("no proxy has connected");
                }
                Err(_would_block) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        proxy.set_nonblocking(false)?;
        proxy.set_read_timeout(Some(TIMEOUT))?;
        self.proxy = Some(proxy);
        let hello = ZdsHello::decode(self.receive()?.as_slice())?;
        ensure!(
            hello.version == 1,
            "expected a hello of version 1, found {}",
            hello.version
        );
        Ok(())
    }

    /// Announces a pod; `uid` is that of Kubernetes.
    ///
    /// # Errors
    /// When the proxy refuses it.
    pub fn add(&self, pod: &Host, uid: &str) -> Result<()> {
        let added = Payload::Add(AddWorkload {
            uid: uid.to_owned(),
            workload_info: Some(WorkloadInfo {
                name: pod.name.clone(),
                namespace: "default".to_owned(),
                service_account: pod.name.clone(),
            }),
        });
        self.request(added, Some(pod.namespace.handle().as_raw_fd()))
    }

    /// Announces that a pod stays enrolled.
    ///
    /// # Errors
    /// When the proxy refuses it.
    pub fn keep(&self, uid: &str) -> Result<()> {
        let uid = uid.to_owned();
        self.request(Payload::Keep(KeepWorkload { uid }), None)
    }

    /// Announces that a pod was removed.
    ///
    /// # Errors
    /// When the proxy refuses it.
    pub fn delete(&self, uid: &str) -> Result<()> {
        let uid = uid.to_owned();
        self.request(Payload::Del(DelWorkload { uid }), None)
    }

    /// Announces the end of the initial list of pods.
    ///
    /// # Errors
    /// When the proxy refuses it.
    pub fn snapshot_sent(&self) -> Result<()> {
        self.request(Payload::SnapshotSent(SnapshotSent {}), None)
    }

    fn request(&self, payload: Payload, descriptor: Option<RawFd>) -> Result<()> {
        let proxy = self.proxy.as_ref().context("no proxy has connected")?;
        let packet = WorkloadRequest {
            payload: Some(payload),
        }
        .encode_to_vec();
        let descriptors: Vec<RawFd> = descriptor.into_iter().collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let rights = if descriptors.is_empty() {
            &[][..]
        } else {
            &rights[..]
        };
        sendmsg::<()>(
            proxy.as_raw_fd(),
            &[IoSlice::new(&packet)],
            rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        let answer = WorkloadResponse::decode(self.receive()?.as_slice())?;
        match answer.payload {
            Some(Answer::Ack(ack)) if ack.error.is_empty() => Ok(()),
            Some(Answer::Ack(ack)) => bail!("the proxy refused the request: {}", ack.error),
            None => bail!("the proxy sent an empty response"),
        }
    }

    fn receive(&self) -> Result<Vec<u8>> {
        let mut proxy = self.proxy.as_ref().context("no proxy has connected")?;
        let mut packet = vec![0; 1 << 16];
        let length = proxy
            .read(&mut packet)
            .context("waiting for a packet of the proxy")?;
        ensure!(length > 0, "the proxy closed the connection");
        packet.truncate(length);
        Ok(packet)
    }
}

impl Drop for NodeAgent {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}
