//! A minimal HTTP/2 client (RFC 9113, RFC 7541) that can send any frame, valid or not.

use std::io::{self, Read, Write};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (RFC 9113, section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Data = 0,
    Headers = 1,
    Reset = 3,
    Settings = 4,
    Ping = 6,
    GoAway = 7,
    Continuation = 9,
}

/// Codes of RST_STREAM (RFC 9113, section 7).
#[allow(missing_docs, reason = "the names are those of the RFC")]
pub(crate) struct Codes {
    pub(crate) no_error: u32,
    pub(crate) internal_error: u32,
    pub(crate) cancel: u32,
    pub(crate) connect_error: u32,
}

pub(crate) const CODES: Codes = Codes {
    no_error: 0,
    internal_error: 2,
    cancel: 8,
    connect_error: 10,
};

/// Encodes a frame.
pub(crate) fn frame(kind: Kind, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind as u8, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

const RESET: u8 = 3;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
/// The flag END_HEADERS.
pub(crate) const END_HEADERS: u8 = 4;

/// The reply to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The status of a response.
    Status(u16),
    /// The stream was reset with this code.
    Reset(u32),
    /// GOAWAY with this code.
    GoAway(u32),
    /// The connection has ended, with this error.
    Closed(String),
}

/// A header as a literal that is never indexed, without Huffman coding.
pub(crate) fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut block = vec![0];
    for text in [name, value] {
        length(text.len(), &mut block);
        block.extend_from_slice(text);
    }
    block
}

/// An integer with a prefix of seven bits (RFC 7541, section 5.1).
fn length(mut number: usize, block: &mut Vec<u8>) {
    let byte = |number: usize| u8::try_from(number).unwrap();
    if number < 127 {
        block.push(byte(number));
        return;
    }
    block.push(127);
    number -= 127;
    while number >= 128 {
        block.push(byte(number % 128) | 128);
        number /= 128;
    }
    block.push(byte(number));
}

/// Encodes several headers.
pub(crate) fn header(pairs: &[(&str, &str)]) -> Vec<u8> {
    pairs
        .iter()
        .flat_map(|(name, value)| literal(name.as_bytes(), value.as_bytes()))
        .collect()
}

/// The headers of a CONNECT.
pub(crate) fn connect(authority: &str) -> Vec<u8> {
    header(&[(":method", "CONNECT"), (":authority", authority)])
}

/// The client's end of an HTTP/2 connection.
pub(crate) struct Tunnels<IO> {
    io: IO,
}

impl<IO: Read + Write> Tunnels<IO> {
    /// Sends the preface and the settings.
    pub(crate) fn open(io: IO) -> io::Result<Self> {
        let mut this = Self { io };
        this.io.write_all(PREFACE)?;
        this.send(Kind::Settings, 0, 0, &[])?;
        Ok(this)
    }

    /// Sends one frame.
    pub(crate) fn send(
        &mut self,
        kind: Kind,
        flags: u8,
        stream: u32,
        body: &[u8],
    ) -> io::Result<()> {
        self.io.write_all(&frame(kind, flags, stream, body))?;
        self.io.flush()
    }

    /// Sends headers in one frame; the stream stays open.
    pub(crate) fn request(&mut self, stream: u32, block: &[u8]) -> io::Result<()> {
        self.send(Kind::Headers, END_HEADERS, stream, block)
    }

    /// Sends raw bytes, which need not be a frame.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes)?;
        self.io.flush()
    }

    /// Waits for the reply on a stream.
    pub(crate) fn reply(&mut self, stream: u32) -> Reply {
        loop {
            match self.frame() {
                Ok((HEADERS, _, id, block)) if id == stream => {
                    return Reply::Status(status(&block));
                }
                Ok((RESET, _, id, body)) if id == stream => return Reply::Reset(number(&body, 0)),
                Ok((GOAWAY, _, _, body)) => return Reply::GoAway(number(&body, 4)),
                Ok((SETTINGS, 0, _, _)) => drop(self.send(Kind::Settings, ACK, 0, &[])),
                Ok(_) => {}
                Err(error) => return Reply::Closed(error.to_string()),
            }
        }
    }

    /// Reads the data of a tunnel until it contains `text`.
    pub(crate) fn read_until(&mut self, stream: u32, text: &str) -> io::Result<String> {
        let mut bytes = Vec::new();
        loop {
            let (kind, _, id, body) = self.frame()?;
            if kind == Kind::Data as u8 && id == stream {
                bytes.extend(body);
            }
            let so_far = String::from_utf8_lossy(&bytes);
            if so_far.contains(text) {
                return Ok(so_far.into_owned());
            }
        }
    }

    fn frame(&mut self) -> io::Result<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut body = vec![0; length];
        self.io.read_exact(&mut body)?;
        Ok((head[3], head[4], number(&head, 5) & 0x7fff_ffff, body))
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|four| four.try_into().ok())
        .map_or(u32::MAX, u32::from_be_bytes)
}

/// The status at the beginning of the first header block of a connection.
fn status(block: &[u8]) -> u16 {
    // RFC 7541, appendix A: entries 8 to 14 are statuses.
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match block {
        [first @ 0x88..=0x8e, ..] => INDEXED[usize::from(first - 0x88)],
        // A literal whose name has the index of `:status`, with or without indexing.
        [0x48 | 0x08 | 0x18, size, value @ ..] if size & 0x80 != 0 => digits(value),
        [0x48 | 0x08 | 0x18, 3, value @ ..] => value
            .iter()
            .take(3)
            .fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0')),
        _ => 0,
    }
}

/// Decodes three Huffman-coded digits (RFC 7541, appendix B): 0 to 2 have five bits, the others
/// six.
fn digits(value: &[u8]) -> u16 {
    let mut bits = value
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1)));
    let mut status = 0;
    for _ in 0..3 {
        let mut code = 0;
        for bit in bits.by_ref().take(5) {
            code = code * 2 + bit;
        }
        if code > 2 {
            code = code * 2 + bits.next().unwrap_or_default() + 3 - 0x19;
        }
        status = status * 10 + code;
    }
    status
}
