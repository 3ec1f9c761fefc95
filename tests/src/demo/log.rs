//! The logs of the proxies (JSON lines): a line for each connection that has ended (target `access`), and
//! a line for each connection between proxies (target `ztunnel::node::proxy::tunnel_client`).

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::proxy::Proxy;

/// The log filter of the proxies.
pub(super) const FILTER: &str = "info,ztunnel::node::proxy::tunnel_client=debug";
/// The time limit for a line: lines are written in batches after the connection has ended.
const TIMEOUT: Duration = Duration::from_secs(5);
const ACCESS: &str = "access";
const TUNNEL: &str = "ztunnel::node::proxy::tunnel_client";
/// The message of a tunnel's line.
const ESTABLISHED: &str = "tunnel connection established";

/// One line of a log.
#[derive(Debug, Clone)]
pub(super) struct Line(Value);

impl Line {
    /// A field's text, if the line has it.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// Whether a field has this value.
    pub(super) fn has(&self, name: &str, text: &str) -> bool {
        self.field(name) == Some(text)
    }

    #[cfg(test)]
    pub(super) fn of(value: Value) -> Self {
        Self(value)
    }
}

/// Waits for a line of the access log. `None` if it is not written in time.
pub(super) fn access(proxy: &Proxy<'_>, matches: impl Fn(&Line) -> bool) -> Option<Line> {
    let started = Instant::now();
    loop {
        let log = proxy.log();
        if let Some(line) = lines(&log, ACCESS).find(|line| matches(line)) {
            return Some(line);
        }
        if started.elapsed() > TIMEOUT {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The tunnel connections of this proxy so far. They are logged before the access log of the requests
/// in them.
pub(super) fn tunnels(proxy: &Proxy<'_>) -> Vec<Line> {
    lines(&proxy.log(), TUNNEL)
        .filter(|line| line.has("message", ESTABLISHED))
        .collect()
}

fn lines<'a>(log: &'a str, scope: &'a str) -> impl Iterator<Item = Line> + 'a {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(Line)
        .filter(move |line| line.has("scope", scope))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_lines_are_selected_by_their_scope() {
        let log = "plain text\n{\"scope\":\"node\",\"message\":\"x\"}\n{\"scope\":\"access\",\"src.addr\":\"10.0.0.1:1\"}\n";
        let found: Vec<_> = lines(log, ACCESS).collect();
        assert_eq!(found.len(), 1);
        assert!(found[0].has("src.addr", "10.0.0.1:1"));
        assert_eq!(found[0].field("error"), None);
    }
}
