//! Requests, time limits, and assertions about the proxies at the end of a test.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use ztunnel_tests::net::Host;
use ztunnel_tests::proxy::{Mesh, Proxy};
use ztunnel_tests::traffic::{self, Answer};

/// The time limit of each wait. Most take milliseconds; the limit is for busy machines, and no test
/// measures speed.
pub(crate) const LIMIT: Duration = Duration::from_secs(15);

/// The port of the pods' servers.
pub(crate) const HTTP: u16 = 8080;

/// The marker of every request, for which sniffers search.
pub(crate) const MARKER: &str = "lifecycle-plaintext";

/// Sends one request on a new connection.
pub(crate) fn call(from: &Host, to: SocketAddr) -> io::Result<Answer> {
    from.enter(|| traffic::get(to, MARKER, LIMIT))
}

/// Sends a request that must be answered.
#[track_caller]
pub(crate) fn expect_answer(from: &Host, to: SocketAddr) -> Answer {
    match call(from, to) {
        Ok(answer) => answer,
        Err(error) => panic!("{} got no answer from {to}: {error}", from.name),
    }
}

/// Sends requests until one is answered, after a change that takes a moment.
#[track_caller]
pub(crate) fn wait_for_answer(from: &Host, to: SocketAddr) -> Answer {
    let mut last = None;
    let answer = wait(|| call(from, to).map_err(|error| last = Some(error)).ok());
    match answer {
        Some(answer) => answer,
        None => panic!("{} never got an answer from {to}: {last:?}", from.name),
    }
}

/// Sends a request that must be reset; an orderly end of the connection is not accepted.
#[track_caller]
pub(crate) fn reset(from: &Host, to: SocketAddr) {
    match call(from, to) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        other => panic!("{} to {to}: expected a reset, found {other:?}", from.name),
    }
}

/// Whether a connection was refused at once, as by a port without a listener.
pub(crate) fn is_refused(outcome: &io::Result<Answer>) -> bool {
    matches!(outcome, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Polls until there is a value, for at most [`LIMIT`].
pub(crate) fn wait<T>(mut poll: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        let found = poll();
        if found.is_some() || started.elapsed() > LIMIT {
            return found;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a condition holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    assert!(
        wait(|| holds().then_some(())).is_some(),
        "not within {LIMIT:?}: {what}"
    );
}

/// Asserts that no proxy has ended or panicked.
#[track_caller]
pub(crate) fn assert_all_running(mesh: &mut Mesh<'_>) {
    for proxy in mesh.proxies() {
        assert!(
            proxy.alive(),
            "the proxy of node {} has ended",
            proxy.node().name()
        );
        assert_no_panic(proxy);
    }
}

/// Asserts that a proxy's log contains no panic.
#[track_caller]
pub(crate) fn assert_no_panic(proxy: &Proxy<'_>) {
    let log = proxy.log();
    let panic = log.lines().find(|line| line.contains("panicked"));
    assert!(panic.is_none(), "node {}: {panic:?}", proxy.node().name());
}

/// The names in a section of `/config_dump`.
pub(crate) fn listed(proxy: &Proxy<'_>, section: &str) -> Vec<String> {
    let dump = proxy.config_dump().unwrap();
    let objects = dump[section].as_array().cloned().unwrap_or_default();
    let names = objects
        .iter()
        .map(|object| object["name"].as_str().unwrap_or_default().to_owned());
    names.collect()
}
