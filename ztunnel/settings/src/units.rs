//! Sizes and durations in the notation of the settings file: `2MiB`, `10s`, `1h 30m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A duration of the settings file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

/// Serializes a duration in the notation of the settings file.
pub(super) fn as_text<S: serde::Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// A text that is no size or no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages describe the variants")]
pub enum ParseUnitError {
    #[error("{text:?} is not a size such as 2MiB, 64KiB or a number of bytes")]
    Size { text: String },
    #[error("{text:?} is not a duration such as 10s, 5m or 24h")]
    Duration { text: String },
}

const UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl FromStr for Bytes {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim();
        let (number, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((trimmed.strip_suffix(unit)?, *factor)))
            .unwrap_or((trimmed, 1));
        number
            .trim_end()
            .parse()
            .ok()
            .and_then(|number: u64| number.checked_mul(factor))
            .map(Self)
            .ok_or_else(|| ParseUnitError::Size {
                text: text.to_owned(),
            })
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |factor: u64| self.0 >= factor && self.0.is_multiple_of(factor);
        let (unit, factor) = UNITS
            .into_iter()
            .find(|(_, f)| fits(*f))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Size;
        impl Visitor<'_> for Size {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 2MiB, 64KiB or a number of bytes")
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Bytes, E> {
                Ok(Bytes(number))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Size)
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, ParseUnitError> {
    humantime::parse_duration(text.trim()).map_err(|_no_duration| ParseUnitError::Duration {
        text: text.to_owned(),
    })
}

/// As [`duration`], but a bare number is seconds, as Istio's variables have it.
pub(super) fn duration_or_seconds(text: &str) -> Result<Duration, ParseUnitError> {
    text.trim()
        .parse()
        .map_or_else(|_no_number| duration(text), |s| Ok(Duration::from_secs(s)))
}

pub(super) fn show(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Time;
        impl Visitor<'_> for Time {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration with its unit, such as 10s, 5m or 24h")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Span, E> {
                duration(text).map(Span).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17B", 17),
            ("64KiB", 65536),
            ("2 MiB", 2 << 20),
            ("1GiB", 1 << 30),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "MiB", "2MB", "-1", "1.5MiB", "99999999999GiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        assert_eq!(Bytes(2 << 20).to_string(), "2MiB");
        assert_eq!(Bytes(65537).to_string(), "65537B");
        assert_eq!(Bytes(0).to_string(), "0B");
    }

    #[test]
    fn durations() {
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert!(duration("10").is_err());
        assert_eq!(duration_or_seconds("10"), Ok(Duration::from_secs(10)));
        assert!(duration_or_seconds("-1").is_err());
    }
}
