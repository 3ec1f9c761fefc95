//! Forwards queries to the resolver that the application addressed.
//!
//! The query is forwarded unchanged except for its id; the answer is returned unchanged. An
//! attacker who does not see the query cannot forge an answer: each query has its own port, a
//! connected socket and a random id (RFC 5452).

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use hickory_proto::op::{MessageType, ResponseCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{TcpStream, UdpSocket};

use super::wire;

/// The maximum length of a message (RFC 1035, section 4.2.2).
pub(super) const MAX_MESSAGE: usize = u16::MAX as usize;

/// A query on its way to a resolver, with a random id.
struct OutgoingQuery<'a> {
    /// The query as the application sent it.
    original: &'a [u8],
    question: Option<&'a [u8]>,
    id: u16,
    message: Vec<u8>,
}

impl<'a> OutgoingQuery<'a> {
    fn new(original: &'a [u8]) -> Self {
        let id = rand::random();
        let mut message = original.to_vec();
        wire::set_id(&mut message, id);
        Self {
            original,
            question: wire::question(original),
            id,
            message,
        }
    }

    /// Whether a message answers the query. A resolver that refuses may omit the question.
    fn is_answered_by(&self, message: &[u8]) -> bool {
        let Some(header) = wire::header(message) else {
            return false;
        };
        let same_question = match (self.question, wire::question(message)) {
            (Some(sent), Some(answered)) => wire::same_question(sent, answered),
            (Some(_), None) => {
                header.counts.queries == 0 && header.response_code != ResponseCode::NoError
            }
            (None, _) => true,
        };
        header.message_type == MessageType::Response && header.id == self.id && same_question
    }

    /// The answer with the application's own id.
    fn restore_id(&self, mut answer: Vec<u8>) -> Vec<u8> {
        if let Some(header) = wire::header(self.original) {
            wire::set_id(&mut answer, header.id);
        }
        answer
    }
}

fn timed_out(after: Duration) -> io::Error {
    let text = format!("the resolver did not answer within {after:?}");
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// Sends the query over a socket that is connected to the resolver and used for this query only.
/// The answer is read into `buffer`.
///
/// # Errors
/// Those of the socket; `TimedOut` after `timeout`.
pub(super) async fn by_datagram(
    socket: UdpSocket,
    query: &[u8],
    timeout: Duration,
    buffer: &RefCell<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    let query = OutgoingQuery::new(query);
    let exchange = async {
        socket.send(&query.message).await?;
        loop {
            readable(&socket).await?;
            let mut buffer = buffer.borrow_mut();
            match socket.try_recv(&mut buffer) {
                Ok(length) if query.is_answered_by(&buffer[..length]) => {
                    return Ok(query.restore_id(buffer[..length].to_vec()));
                }
                // Not an answer to this query.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    let answer = tokio::time::timeout(timeout, exchange).await;
    answer.unwrap_or_else(|_elapsed| Err(timed_out(timeout)))
}

/// Waits until the socket is readable. An ICMP error arrives as a socket error, which waiting for
/// data alone would miss.
async fn readable(socket: &UdpSocket) -> io::Result<()> {
    let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
    if !ready.is_error() {
        return Ok(());
    }
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    // The error is consumed: clear the readiness and wait again.
    let clear = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
    drop(socket.try_io(Interest::ERROR, clear));
    Ok(())
}

/// Sends the query over a new connection to the resolver.
///
/// # Errors
/// Those of the connection; `TimedOut` after `timeout`, `InvalidData` for an answer to another
/// query.
pub(super) async fn by_stream(
    connect: impl Future<Output = io::Result<TcpStream>>,
    query: &[u8],
    timeout: Duration,
) -> io::Result<Vec<u8>> {
    let query = OutgoingQuery::new(query);
    let exchange = async {
        let mut stream = connect.await?;
        write_frame(&mut stream, &query.message).await?;
        let answer = read_frame(&mut stream).await?;
        if query.is_answered_by(&answer) {
            Ok(query.restore_id(answer))
        } else {
            let text = "the resolver answered another query";
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
    };
    let answer = tokio::time::timeout(timeout, exchange).await;
    answer.unwrap_or_else(|_elapsed| Err(timed_out(timeout)))
}

/// Reads one message, preceded by its length, from a stream.
///
/// # Errors
/// Those of the stream; `UnexpectedEof` at its end.
pub(super) async fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes one message, preceded by its length, to a stream.
///
/// # Errors
/// Those of the stream; `InvalidInput` for a message that is too long.
pub(super) async fn write_frame(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len())
        .map_err(|too_long| io::Error::new(io::ErrorKind::InvalidInput, too_long))?;
    // In one write: some peers expect the length and the message in a single read.
    let mut frame = Vec::with_capacity(2 + message.len());
    frame.extend(length.to_be_bytes());
    frame.extend(message);
    stream.write_all(&frame).await
}
