//! Forwards queries to the resolver that the application addressed.
//!
//! The query is forwarded unchanged except for its id; the answer is returned unchanged. An
//! attacker who does not see the query cannot forge an answer: each query has its own port, a
//! connected socket and a random id (RFC 5452).

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{TcpStream, UdpSocket};

use super::wire::{self, Header};

/// The longest message (RFC 1035, section 4.2.2).
pub(super) const LONGEST_MESSAGE: usize = u16::MAX as usize;

/// The parts of a query that its answer must match.
struct Sent<'a> {
    id: u16,
    question: Option<&'a [u8]>,
}

impl Sent<'_> {
    /// Whether a message answers the query. A resolver that refuses may omit the question.
    fn is_answered_by(&self, message: &[u8]) -> bool {
        let Some(header) = Header::of(message) else {
            return false;
        };
        let same = match (self.question, wire::question(message)) {
            (Some(sent), Some(told)) => wire::same_question(sent, told),
            (Some(_), None) => header.counts[0] == 0 && header.code() != 0,
            (None, _) => true,
        };
        header.is_response() && header.id == self.id && same
    }
}

/// The query with an unpredictable id; returns that id, too.
fn disguised(query: &[u8]) -> (Vec<u8>, u16) {
    let id = rand::random();
    let mut disguised = query.to_vec();
    wire::set_id(&mut disguised, id);
    (disguised, id)
}

/// The answer with the application's own id.
fn undisguised(mut answer: Vec<u8>, query: &[u8]) -> Vec<u8> {
    if let Some(header) = Header::of(query) {
        wire::set_id(&mut answer, header.id);
    }
    answer
}

fn late(after: Duration) -> io::Error {
    let text = format!("the resolver did not answer within {after:?}");
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// Sends the query over a socket that is connected to the resolver and used for this query only.
/// The answer is read into `room`.
///
/// # Errors
/// Those of the socket; `TimedOut` after `timeout`.
pub(super) async fn by_datagram(
    socket: UdpSocket,
    query: &[u8],
    timeout: Duration,
    room: &std::cell::RefCell<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    let (message, id) = disguised(query);
    let sent = Sent {
        id,
        question: wire::question(query),
    };
    let exchange = async {
        socket.send(&message).await?;
        loop {
            wait(&socket).await?;
            let mut room = room.borrow_mut();
            match socket.try_recv(&mut room) {
                Ok(length) if sent.is_answered_by(&room[..length]) => {
                    return Ok(undisguised(room[..length].to_vec(), query));
                }
                // Not an answer to this query.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    let answered = tokio::time::timeout(timeout, exchange).await;
    answered.unwrap_or_else(|_elapsed| Err(late(timeout)))
}

/// Waits until the socket is readable. An ICMP error arrives as a socket error, which waiting for
/// data alone would miss.
async fn wait(socket: &UdpSocket) -> io::Result<()> {
    let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
    if !ready.is_error() {
        return Ok(());
    }
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    // The error is consumed: clear the readiness and wait again.
    let over = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
    drop(socket.try_io(Interest::ERROR, over));
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
    let (message, id) = disguised(query);
    let sent = Sent {
        id,
        question: wire::question(query),
    };
    let exchange = async {
        let mut stream = connect.await?;
        write_frame(&mut stream, &message).await?;
        let answer = read_frame(&mut stream).await?;
        if sent.is_answered_by(&answer) {
            Ok(undisguised(answer, query))
        } else {
            let text = "the resolver answered another query";
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
    };
    let answered = tokio::time::timeout(timeout, exchange).await;
    answered.unwrap_or_else(|_elapsed| Err(late(timeout)))
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
