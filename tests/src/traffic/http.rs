//! The part of HTTP/1.1 that the load generator uses.

use std::io;

/// The header whose value the server returns in the body.
pub(crate) const MARKER: &str = "x-marker";
const MAX_HEADERS: usize = 16;

/// The head of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    /// The length of the head, in bytes.
    pub(crate) length: usize,
    /// The marker; empty if it is missing.
    pub(crate) marker: &'a str,
    /// Whether the server closes the connection after the response.
    pub(crate) close: bool,
}

/// The head of a response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// The length of head and body, in bytes.
    pub(crate) length: usize,
    /// The offset of the body.
    pub(crate) body: usize,
    /// The status.
    pub(crate) status: u16,
}

/// Parses a request without a body; `None` if it is incomplete.
pub(crate) fn request(bytes: &[u8]) -> io::Result<Option<Request<'_>>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(bytes).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let mut marker = "";
    let mut close = false;
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case(MARKER) {
            marker = std::str::from_utf8(header.value).map_err(io::Error::other)?;
        } else if header.name.eq_ignore_ascii_case("connection") {
            close = header.value.eq_ignore_ascii_case(b"close");
        }
    }
    Ok(Some(Request {
        length,
        marker,
        close,
    }))
}

/// Parses a response with a `content-length`; `None` if head or body are incomplete.
pub(crate) fn response(bytes: &[u8]) -> io::Result<Option<Response>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(body) = response.parse(bytes).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let content = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok())
        .and_then(|value| value.parse::<usize>().ok())
        .ok_or_else(|| io::Error::other("a response without content-length"))?;
    let status = response.code.unwrap_or_default();
    Ok((bytes.len() >= body + content).then_some(Response {
        length: body + content,
        body,
        status,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complete_request_is_parsed() {
        let text = b"GET / HTTP/1.1\r\nX-Marker: abc\r\nConnection: close\r\n\r\nmore";
        assert_eq!(request(&text[..20]).unwrap(), None);
        let whole = request(text).unwrap().unwrap();
        assert_eq!(
            whole,
            Request {
                length: text.len() - 4,
                marker: "abc",
                close: true
            }
        );
        assert!(request(b"\x00garbage\r\n\r\n").is_err());
    }

    #[test]
    fn a_response_is_parsed_with_its_body() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody";
        assert_eq!(response(&text[..text.len() - 1]).unwrap(), None);
        let whole = response(text).unwrap().unwrap();
        assert_eq!(
            whole,
            Response {
                length: text.len(),
                body: text.len() - 4,
                status: 200
            }
        );
    }
}
