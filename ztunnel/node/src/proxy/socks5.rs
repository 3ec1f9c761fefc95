//! SOCKS version 5 inside a pod: an application that cannot be captured, or wants names resolved by
//! the mesh, says where it wants to go instead of going there. What it says is read here; from then
//! on the connection is an outbound one as any other, with the same routes, policies and records.
//!
//! Only CONNECT and only without authentication: the listener is on the pod's loopback, and whoever
//! is in the pod is the pod.

pub mod message;

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use self::message::{
    CHOSEN, Destination, LONGEST, MessageError, Progress, Reply, greeting, request,
};

/// How long a client may take to say where it wants to go.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a client has not come to its request.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// It went away, or broke off.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It said something that is not served.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// It was silent.
    #[error("no request within {PATIENCE:?}")]
    Timeout,
}

/// Talks with a client until it has said where it wants to go. The answer to that is the caller's.
///
/// # Errors
/// When it does not; it has been told why, and the connection is to be closed.
pub(super) async fn ask(client: &mut TcpStream) -> Result<Destination, Error> {
    let asked = tokio::time::timeout(PATIENCE, async {
        read(client, greeting).await?;
        client.write_all(&CHOSEN).await?;
        read(client, request).await
    });
    let asked = asked.await.unwrap_or(Err(Error::Timeout));
    if let Err(Error::Message(error)) = &asked
        && let Some(answer) = error.answer()
    {
        refuse(client, &answer).await;
    }
    asked
}

/// Says that the connection is there.
///
/// # Errors
/// When the client is gone.
pub(super) async fn confirm(client: &mut TcpStream) -> io::Result<()> {
    client.write_all(&Reply::Succeeded.message()).await
}

/// Says the last thing, and ends the connection so that it arrives: dropped with bytes unread it
/// would be a reset, which takes away what was said. A few bytes fit into any socket's buffer, and
/// the wait for the client is bounded.
pub(super) async fn refuse(client: &mut TcpStream, answer: &[u8]) {
    let say = async {
        client.write_all(answer).await?;
        client.shutdown().await?;
        let mut rest = [0; LONGEST];
        while client.read(&mut rest).await? > 0 {}
        Ok::<(), io::Error>(())
    };
    if !matches!(tokio::time::timeout(LINGER, say).await, Ok(Ok(()))) {
        tracing::debug!("a SOCKS client did not wait for its answer");
    }
}

/// How long a client that was refused may take to go.
const LINGER: Duration = Duration::from_secs(1);

/// Reads one message, and not a byte more: what follows is the application's.
async fn read<T>(
    client: &mut TcpStream,
    parse: impl Fn(&[u8]) -> Result<Progress<T>, MessageError>,
) -> Result<T, Error> {
    let mut bytes = [0; LONGEST];
    let mut have = 0;
    loop {
        let total = match parse(bytes.get(..have).unwrap_or_default())? {
            Progress::Done(said) => return Ok(said),
            Progress::Needs(total) => total,
        };
        let missing = bytes.get_mut(have..total).ok_or(MessageError::Name)?;
        client.read_exact(missing).await?;
        have = total;
    }
}
