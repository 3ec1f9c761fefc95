//! The node agent: names the pods of one node to its proxy, with their network namespaces.

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

/// How long a proxy may take to connect or to answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// A node agent that waits for its proxy, and then talks to that one only.
#[derive(Debug)]
pub struct NodeAgent {
    path: PathBuf,
    listener: Socket,
    proxy: Option<Socket>,
    /// The proxy that came before, which hears nothing any more.
    before: Option<Socket>,
}

impl NodeAgent {
    /// Listens at a path.
    ///
    /// # Errors
    /// When it cannot.
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
            before: None,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for a proxy to connect and to say hello.
    ///
    /// # Errors
    /// When none does in time, or it says something else.
    pub fn meet(&mut self) -> Result<()> {
        self.proxy = None;
        self.welcome()
    }

    /// As [`Self::meet`], while the connection of the proxy before stays open.
    ///
    /// # Errors
    /// As [`Self::meet`].
    pub fn meet_heir(&mut self) -> Result<()> {
        self.before = self.proxy.take();
        self.welcome()
    }

    fn welcome(&mut self) -> Result<()> {
        let waiting = Instant::now();
        let proxy = loop {
            match self.listener.accept() {
                Ok((proxy, _)) => break proxy,
                Err(error) if waiting.elapsed() > PATIENCE => {
                    return Err(error).context("no proxy has connected");
                }
                Err(_nobody) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        proxy.set_nonblocking(false)?;
        proxy.set_read_timeout(Some(PATIENCE))?;
        self.proxy = Some(proxy);
        let hello = ZdsHello::decode(self.receive()?.as_slice())?;
        ensure!(hello.version == 1, "a hello of version {}", hello.version);
        Ok(())
    }

    /// Tells of a pod; `uid` is that of Kubernetes.
    ///
    /// # Errors
    /// When the proxy does not take it.
    pub fn add(&self, pod: &Host, uid: &str) -> Result<()> {
        let added = Payload::Add(AddWorkload {
            uid: uid.to_owned(),
            workload_info: Some(WorkloadInfo {
                name: pod.name.clone(),
                namespace: "default".to_owned(),
                service_account: pod.name.clone(),
            }),
        });
        self.ask(added, Some(pod.namespace.handle().as_raw_fd()))
    }

    /// Says that a pod is still there.
    ///
    /// # Errors
    /// When the proxy does not take it.
    pub fn keep(&self, uid: &str) -> Result<()> {
        let uid = uid.to_owned();
        self.ask(Payload::Keep(KeepWorkload { uid }), None)
    }

    /// Says that a pod is gone.
    ///
    /// # Errors
    /// When the proxy does not take it.
    pub fn delete(&self, uid: &str) -> Result<()> {
        let uid = uid.to_owned();
        self.ask(Payload::Del(DelWorkload { uid }), None)
    }

    /// Says that everything has been named.
    ///
    /// # Errors
    /// When the proxy does not take it.
    pub fn snapshot_sent(&self) -> Result<()> {
        self.ask(Payload::SnapshotSent(SnapshotSent {}), None)
    }

    fn ask(&self, payload: Payload, descriptor: Option<RawFd>) -> Result<()> {
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
            Some(Answer::Ack(ack)) => bail!("the proxy refused: {}", ack.error),
            None => bail!("the proxy answered with nothing"),
        }
    }

    fn receive(&self) -> Result<Vec<u8>> {
        let mut proxy = self.proxy.as_ref().context("no proxy has connected")?;
        let mut packet = vec![0; 1 << 16];
        let length = proxy
            .read(&mut packet)
            .context("the proxy has not answered")?;
        ensure!(length > 0, "the proxy hung up");
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
