//! The `traceparent` header (W3C Trace Context, level 1): which trace a tunnel belongs to.

use std::fmt;
use std::str::FromStr;

use http::HeaderValue;

/// The position of a tunnel in a distributed trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// The trace; not zero.
    pub trace_id: u128,
    /// The span of the sender; not zero.
    pub parent_id: u64,
    /// The flags; bit 0 means that the trace is recorded.
    pub flags: u8,
}

/// The text is not a traceparent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent: expected 00-<32 hex digits>-<16 hex digits>-<2 hex digits>")]
pub struct ParseTraceParentError;

impl TraceParent {
    /// The value of the header.
    ///
    /// # Errors
    /// None in practice: the text is hexadecimal digits and dashes.
    pub fn encode(self) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
        HeaderValue::from_maybe_shared(bytes::Bytes::from(self.to_string()))
    }

    /// Reads a header. A malformed header is ignored, so a new trace starts, as the specification
    /// requires.
    #[must_use]
    pub fn decode(value: &HeaderValue) -> Option<Self> {
        value.to_str().ok()?.parse().ok()
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id, self.parent_id, self.flags
        )
    }
}

impl FromStr for TraceParent {
    type Err = ParseTraceParentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text.as_bytes()).ok_or(ParseTraceParentError)
    }
}

fn parse(text: &[u8]) -> Option<TraceParent> {
    // Version 00 has 55 bytes; a later version may add more after a dash.
    let (head, tail) = text.split_at_checked(55)?;
    let version = hex(&head[..2])?;
    let fits = match version {
        0 => tail.is_empty(),
        0xff => false,
        _ => tail.first().is_none_or(|&byte| byte == b'-'),
    };
    if !fits || [head[2], head[35], head[52]] != [b'-'; 3] {
        return None;
    }
    let trace_id = hex(&head[3..35]).filter(|&id| id != 0)?;
    let parent_id = hex(&head[36..52])
        .and_then(|id| u64::try_from(id).ok())
        .filter(|&id| id != 0)?;
    let flags = hex(&head[53..55]).and_then(|flags| u8::try_from(flags).ok())?;
    Some(TraceParent {
        trace_id,
        parent_id,
        flags,
    })
}

/// Parses lower-case hexadecimal, as the specification requires; at most 32 digits.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value: u128, &digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}
