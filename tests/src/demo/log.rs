//! What the proxies' logs (JSON lines) say: a line for each connection that has ended (target
//! `access`), and a line for each connection between proxies (target `ztunnel::node::proxy::open_tunnel`).

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::proxy::Proxy;

/// What the demonstration's proxies log.
pub(super) const FILTER: &str = "info,ztunnel::node::proxy::open_tunnel=debug";
/// A line is written when its connection has ended, and in batches.
const PATIENCE: Duration = Duration::from_secs(5);
const ACCESS: &str = "access";
const TUNNEL: &str = "ztunnel::node::proxy::open_tunnel";
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

    /// Whether a field says exactly this.
    pub(super) fn says(&self, name: &str, text: &str) -> bool {
        self.field(name) == Some(text)
    }

    #[cfg(test)]
    pub(super) fn of(value: Value) -> Self {
        Self(value)
    }
}

/// The access log's line that is wanted, as soon as it is there.
pub(super) fn access(proxy: &Proxy<'_>, wanted: impl Fn(&Line) -> bool) -> Option<Line> {
    let started = Instant::now();
    loop {
        let log = proxy.log();
        if let Some(line) = lines(&log, ACCESS).find(|line| wanted(line)) {
            return Some(line);
        }
        if started.elapsed() > PATIENCE {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The connections between proxies of which this proxy was an end, so far. Where requests have
/// been answered and their lines are there, those of their tunnels are there too.
pub(super) fn tunnels(proxy: &Proxy<'_>) -> Vec<Line> {
    lines(&proxy.log(), TUNNEL)
        .filter(|line| line.says("message", ESTABLISHED))
        .collect()
}

fn lines<'a>(log: &'a str, scope: &'a str) -> impl Iterator<Item = Line> + 'a {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(Line)
        .filter(move |line| line.says("scope", scope))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_lines_are_told_from_others() {
        let log = "plain text\n{\"scope\":\"node\",\"message\":\"x\"}\n{\"scope\":\"access\",\"src.addr\":\"10.0.0.1:1\"}\n";
        let found: Vec<_> = lines(log, ACCESS).collect();
        assert_eq!(found.len(), 1);
        assert!(found[0].says("src.addr", "10.0.0.1:1"));
        assert_eq!(found[0].field("error"), None);
    }
}
