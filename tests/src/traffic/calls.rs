//! Calls of a service by its name, as an application makes them: for a time or a number of calls,
//! each on a new connection or over connections that stay open. Failures are counted and described.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{IoMode, Stream, get_over};

/// The marker in every call and every answer: a sniffer finds it in plaintext only.
pub const MARKER: &str = "call-that-must-be-encrypted";
/// The time limit of one call.
const LIMIT: Duration = Duration::from_secs(10);
/// The pause after a failed call, so that an unreachable service does not cost a core.
const PAUSE: Duration = Duration::from_millis(20);
/// The number of different failures that are described.
const MAX_KINDS: usize = 8;

/// Which connections carry the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// Each call has a new one.
    New,
    /// Each caller keeps one; a failure is followed by a new one.
    Kept,
}

/// The calls to make.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `NAME:PORT` or `ADDRESS:PORT`; resolved for each new connection.
    pub to: String,
    /// The connections.
    pub connections: Connections,
    /// The number of concurrent callers.
    pub callers: usize,
    /// The end of the calls.
    pub length: Duration,
    /// The largest number of calls.
    pub most: u64,
    /// The pause of each caller between two calls.
    pub pause: Duration,
}

/// What came of the calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Answered calls.
    pub answered: u64,
    /// Calls without an answer.
    pub failed: u64,
    /// The failures by description, up to a number of kinds.
    pub failures: BTreeMap<String, u64>,
    /// The first failures: when (UTC), and from which address to which, as in the proxies' logs.
    #[serde(default)]
    pub first_failures: Vec<String>,
    /// The longest call.
    pub longest: Parts,
}

/// The times of the parts of one call, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// The lookup of the name.
    pub resolve_ms: u64,
    /// The opening of the connection.
    pub connect_ms: u64,
    /// From the request to the end of the answer.
    pub answer_ms: u64,
}

impl Parts {
    /// The longer one of two calls.
    #[must_use]
    pub fn longer(self, other: Self) -> Self {
        let total = |parts: Self| parts.resolve_ms + parts.connect_ms + parts.answer_ms;
        if total(other) > total(self) {
            other
        } else {
            self
        }
    }
}

impl Report {
    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.longest = self.longest.longer(other.longest);
        for (failure, number) in other.failures {
            self.describe(failure, number);
        }
        self.first_failures.extend(other.first_failures);
        self.first_failures.truncate(MAX_KINDS);
    }

    fn describe(&mut self, failure: String, number: u64) {
        if self.failures.len() < MAX_KINDS || self.failures.contains_key(&failure) {
            *self.failures.entry(failure).or_default() += number;
        }
    }
}

/// Makes the calls.
///
/// # Errors
/// When a thread cannot be started.
pub fn run(plan: &Plan) -> io::Result<Report> {
    let (stop, made) = (AtomicBool::new(false), AtomicU64::new(0));
    let deadline = Instant::now() + plan.length;
    thread::scope(|scope| {
        let caller = || call_until(plan, deadline, &made, &stop);
        let callers = (0..plan.callers).map(|_| {
            let builder = thread::Builder::new();
            builder.spawn_scoped(scope, caller)
        });
        let callers = callers.collect::<io::Result<Vec<_>>>();
        let callers = callers.inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
        let mut all = Report::default();
        for caller in callers {
            let report = caller.join();
            all.add(report.map_err(|_panic| io::Error::other("a caller panicked"))?);
        }
        Ok(all)
    })
}

fn call_until(plan: &Plan, deadline: Instant, made: &AtomicU64, stop: &AtomicBool) -> Report {
    let mut report = Report::default();
    let mut kept = None;
    while Instant::now() < deadline
        && !stop.load(Ordering::Relaxed)
        && made.fetch_add(1, Ordering::Relaxed) < plan.most
    {
        let mut parts = Parts::default();
        match call(plan, &mut kept, &mut parts) {
            Ok(()) => report.answered += 1,
            Err(Failure { text, ends }) => {
                kept = None;
                report.failed += 1;
                if report.first_failures.len() < MAX_KINDS {
                    report
                        .first_failures
                        .push(format!("{} {ends}", time_of_day()));
                }
                report.describe(text, 1);
                thread::sleep(PAUSE);
            }
        }
        report.longest = report.longest.longer(parts);
        thread::sleep(plan.pause);
    }
    report
}

/// A call without an answer.
struct Failure {
    text: String,
    /// The ends of its connection, or what was called.
    ends: String,
}

fn call(plan: &Plan, kept: &mut Option<Stream>, parts: &mut Parts) -> Result<(), Failure> {
    let failed = |what: &'static str, ends: &str| {
        let ends = ends.to_owned();
        move |error: io::Error| Failure {
            text: format!("{what}: {error}"),
            ends,
        }
    };
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => {
            let address = timed(&mut parts.resolve_ms, || resolve(&plan.to));
            let address = address.map_err(failed("resolve", &plan.to))?;
            let connect = || Stream::connect(address, IoMode::Blocking, LIMIT);
            let connected = timed(&mut parts.connect_ms, connect);
            connected.map_err(failed("connect", &address.to_string()))?
        }
    };
    let ends = match (stream.local_addr(), stream.peer_addr()) {
        (Ok(local), Ok(peer)) => format!("{local} -> {peer}"),
        _ => plan.to.clone(),
    };
    let answer = timed(&mut parts.answer_ms, || {
        get_over(&mut stream, MARKER, LIMIT)
    });
    let answer = answer.map_err(failed("answer", &ends))?;
    if answer.status != 200 {
        let text = format!("answer: status {}", answer.status);
        return Err(Failure { text, ends });
    }
    if plan.connections == Connections::Kept {
        *kept = Some(stream);
    }
    Ok(())
}

/// The time of day in UTC, to the millisecond.
fn time_of_day() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    let seconds = now.as_secs() % 86400;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let milliseconds = now.subsec_millis();
    format!(
        "{hours:02}:{minutes:02}:{:02}.{milliseconds:03}",
        seconds % 60
    )
}

/// Does something, and stores how long it took.
fn timed<T>(milliseconds: &mut u64, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = work();
    *milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    result
}

fn resolve(to: &str) -> io::Result<SocketAddr> {
    let mut addresses = to.to_socket_addrs()?;
    let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    addresses.next().ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, serve};
    use super::*;

    fn plan(to: String, connections: Connections) -> Plan {
        Plan {
            to,
            connections,
            callers: 2,
            length: LIMIT,
            most: 20,
            pause: Duration::ZERO,
        }
    }

    #[test]
    fn every_call_is_counted_as_answered_or_as_failed() {
        let server = serve(Kind::Http, "127.0.0.1:0".parse().unwrap()).unwrap();
        let to = format!("localhost:{}", server.port());
        for connections in [Connections::New, Connections::Kept] {
            let report = run(&plan(to.clone(), connections)).unwrap();
            assert_eq!((report.answered, report.failed), (20, 0), "{report:?}");
        }
        drop(server);
        let report = run(&plan(to, Connections::New)).unwrap();
        assert_eq!((report.answered, report.failed), (0, 20), "{report:?}");
        let described: u64 = report.failures.values().sum();
        assert_eq!(described, 20, "{report:?}");
    }
}
