//! Asking the resolver that the application asked.
//!
//! The query leaves as it came, but for its id; the answer comes back as it is. Nobody can slip an
//! answer in who does not see the query: it leaves from a port of its own, the socket is connected,
//! and the id is random (RFC 5452).

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{TcpStream, UdpSocket};

use super::wire::{self, Header};

/// The longest message (RFC 1035, section 4.2.2).
pub(super) const LONGEST_MESSAGE: usize = u16::MAX as usize;

/// What was asked, as far as it has to be known again.
struct Sent<'a> {
    id: u16,
    question: Option<&'a [u8]>,
}

impl Sent<'_> {
    /// Whether a message is the answer. A resolver that refuses may leave the question out.
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

/// A query with an id that nobody can guess, and what it was.
fn disguised(query: &[u8]) -> (Vec<u8>, u16) {
    let id = rand::random();
    let mut disguised = query.to_vec();
    wire::set_id(&mut disguised, id);
    (disguised, id)
}

/// The answer with the id that the application knows.
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

/// Asks over a socket that is connected to the resolver and nobody else's. `room` is where the
/// answer is read into.
///
/// # Errors
/// Those of the socket; `TimedOut` when the time is over.
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
                // Not what was waited for.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    let answered = tokio::time::timeout(timeout, exchange).await;
    answered.unwrap_or_else(|_elapsed| Err(late(timeout)))
}

/// Waits until there is something to read. That nobody is there (an ICMP message) is told as an
/// error of the socket, which reading alone would not notice.
async fn wait(socket: &UdpSocket) -> io::Result<()> {
    let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
    if !ready.is_error() {
        return Ok(());
    }
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    // It is over: wait for the next one.
    let over = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
    drop(socket.try_io(Interest::ERROR, over));
    Ok(())
}

/// Asks over a connection to the resolver that is opened for this query.
///
/// # Errors
/// Those of the connection; `TimedOut` when the time is over, `InvalidData` for another answer
/// than the one to this query.
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

/// Reads one message from a stream, where its length stands before it.
///
/// # Errors
/// Those of the stream; `UnexpectedEof` where it ends.
pub(super) async fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes one message to a stream.
///
/// # Errors
/// Those of the stream; `InvalidInput` for a message that is too long.
pub(super) async fn write_frame(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len())
        .map_err(|too_long| io::Error::new(io::ErrorKind::InvalidInput, too_long))?;
    // In one piece: some read the length and the message with one call and expect both.
    let mut frame = Vec::with_capacity(2 + message.len());
    frame.extend(length.to_be_bytes());
    frame.extend(message);
    stream.write_all(&frame).await
}
