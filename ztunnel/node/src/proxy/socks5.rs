//! SOCKS version 5 inside a pod, for applications that cannot be captured or want the mesh to
//! resolve names. The application names its destination in a SOCKS request, which this module
//! reads. After that the connection is handled like any outbound connection, with the same routes,
//! policies and reports.
//!
//! Only CONNECT without authentication is served. The listener is on the pod's loopback address, so
//! every client is the pod.

pub mod message;

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use self::message::{
    CHOSEN, Destination, MAX_LENGTH, MessageError, Progress, Reply, greeting, request,
};

/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a client sent no usable request.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The connection was closed or broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The client sent a message that is not supported.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The client sent no request in time.
    #[error("no request within {REQUEST_TIMEOUT:?}")]
    Timeout,
}

/// Negotiates with a client until its request has been read. The caller sends the reply to the
/// request.
///
/// # Errors
/// When there is no usable request. The client has got an error reply; the caller closes the
/// connection.
pub(super) async fn read_request(client: &mut TcpStream) -> Result<Destination, Error> {
    let asked = tokio::time::timeout(REQUEST_TIMEOUT, async {
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

/// Confirms that the connection is established.
///
/// # Errors
/// When the client has closed the connection.
pub(super) async fn confirm(client: &mut TcpStream) -> io::Result<()> {
    client.write_all(&Reply::Succeeded.message()).await
}

/// Sends the last reply and closes the connection so that the reply arrives. If the socket were
/// dropped with unread bytes, the kernel would send a reset, which discards the reply. The reply
/// fits into any send buffer, and the wait for the client is bounded.
pub(super) async fn refuse(client: &mut TcpStream, answer: &[u8]) {
    let say = async {
        client.write_all(answer).await?;
        client.shutdown().await?;
        let mut rest = [0; MAX_LENGTH];
        while client.read(&mut rest).await? > 0 {}
        Ok::<(), io::Error>(())
    };
    if !matches!(tokio::time::timeout(LINGER, say).await, Ok(Ok(()))) {
        tracing::debug!("a SOCKS client has closed the connection before the reply");
    }
}

/// How long a refused client may take to close the connection.
const LINGER: Duration = Duration::from_secs(1);

/// Reads exactly one message: the bytes after it belong to the application.
async fn read<T>(
    client: &mut TcpStream,
    parse: impl Fn(&[u8]) -> Result<Progress<T>, MessageError>,
) -> Result<T, Error> {
    let mut bytes = [0; MAX_LENGTH];
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
