//! A client of the proxy's HTTP endpoints, and a parser of its metrics.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// The port of the admin endpoint.
pub(crate) const ADMIN: u16 = 15000;
/// The port of the metrics.
pub(crate) const METRICS: u16 = 15020;
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends a request in the calling thread's network namespace; returns status and body.
pub(crate) fn call(method: &str, to: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // HTTP/1.0: the response is not chunked and ends with the connection.
    stream.write_all(format!("{method} {path} HTTP/1.0\r\nhost: {to}\r\n\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(io::Error::other)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| io::Error::other(format!("expected an HTTP response, found {head:?}")))?;
    Ok((status, body.to_owned()))
}

/// One line of the metrics text.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels, in the order of the text.
    pub labels: Vec<(String, String)>,
    /// Its value.
    pub value: f64,
}

impl Sample {
    /// The value of a label; empty if the sample does not have it.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        self.labels
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }
}

/// The samples of a metrics endpoint.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

impl Metrics {
    /// Parses the text format of Prometheus and OpenMetrics.
    ///
    /// # Errors
    /// When a line is not a sample.
    pub fn parse(text: &str) -> Result<Self> {
        let samples = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| sample(line).with_context(|| format!("parsing the metric {line:?}")))
            .collect::<Result<_>>()?;
        Ok(Self { samples })
    }

    /// The samples of a metric with these labels.
    pub fn find<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.label(key) == *value)
        })
    }

    /// The sum of the samples of a metric with these labels; 0 if there are none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).map(|sample| sample.value).sum()
    }

    /// All samples.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }
}

fn sample(line: &str) -> Result<Sample> {
    let Some((name, rest)) = line.split_once('{') else {
        let (name, value) = line.split_once(' ').context("a metric without a value")?;
        return Ok(Sample {
            name: name.to_owned(),
            labels: Vec::new(),
            value: number(value)?,
        });
    };
    let mut labels = Vec::new();
    let mut rest = rest;
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(value) = rest.strip_prefix('}') {
            return Ok(Sample {
                name: name.to_owned(),
                labels,
                value: number(value)?,
            });
        }
        let (key, after) = rest.split_once("=\"").context("a label without a value")?;
        let (value, after) = quoted(after)?;
        labels.push((key.to_owned(), value));
        rest = after;
    }
}

fn number(text: &str) -> Result<f64> {
    let value = text
        .split_whitespace()
        .next()
        .context("a metric without a value")?;
    value
        .parse()
        .with_context(|| format!("{value} is not a number"))
}

/// Parses a quoted text. Returns the text and the rest after the closing quotation mark.
fn quoted(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, other)) => value.push(other),
                None => break,
            },
            other => value.push(other),
        }
    }
    bail!("a label's value has no closing quotation mark")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_parsed_with_their_labels() {
        let text = "# HELP x y\nplain 3\nlabelled{a=\"1\",b=\"x,\\\"y}\"} 2.5\nlabelled{a=\"2\",b=\"z\"} 1\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("plain", &[]), 3.0);
        assert_eq!(metrics.sum("labelled", &[]), 3.5);
        assert_eq!(metrics.sum("labelled", &[("a", "2")]), 1.0);
        assert_eq!(metrics.samples()[1].label("b"), "x,\"y}");
        assert_eq!(metrics.sum("absent", &[]), 0.0);
    }

    #[test]
    fn an_invalid_line_is_an_error() {
        for text in ["lonely", "open{a=\"1", "word{a=\"1\"} many"] {
            assert!(Metrics::parse(text).is_err(), "{text}");
        }
    }
}
