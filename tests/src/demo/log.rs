//! What the proxies' access logs (JSON lines) say about a connection.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::proxy::Proxy;

/// A line is written when its connection has ended, and in batches.
const PATIENCE: Duration = Duration::from_secs(2);

/// One line of the access log.
#[derive(Debug, Clone)]
pub(super) struct Line(Value);

impl Line {
    /// A field's text, if the line has it.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }
}

/// The line about the connection whose client has this address.
pub(super) fn connection(proxy: &Proxy<'_>, client: SocketAddr) -> Option<Line> {
    let client = client.to_string();
    find(proxy, |line| {
        line.field("src.addr") == Some(client.as_str())
            && line.field("direction") == Some("outbound")
    })
}

/// Why the proxy refused a connection, in its own words.
pub(super) fn refusal(proxy: &Proxy<'_>) -> Option<String> {
    let line = find(proxy, |line| line.field("error").is_some())?;
    let caller = line
        .field("src.identity")
        .or_else(|| line.field("src.addr"))
        .unwrap_or("somebody");
    Some(format!(
        "{caller}: {}",
        line.field("error").unwrap_or_default()
    ))
}

fn find(proxy: &Proxy<'_>, wanted: impl Fn(&Line) -> bool) -> Option<Line> {
    let started = Instant::now();
    loop {
        let log = proxy.log();
        if let Some(line) = lines(&log).find(|line| wanted(line)) {
            return Some(line);
        }
        if started.elapsed() > PATIENCE {
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn lines(log: &str) -> impl Iterator<Item = Line> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(Line)
        .filter(|line| line.field("scope") == Some("access"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_lines_are_told_from_others() {
        let log = "plain text\n{\"scope\":\"node\",\"message\":\"x\"}\n{\"scope\":\"access\",\"src.addr\":\"10.0.0.1:1\"}\n";
        let found: Vec<_> = lines(log).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].field("src.addr"), Some("10.0.0.1:1"));
        assert_eq!(found[0].field("error"), None);
    }
}
