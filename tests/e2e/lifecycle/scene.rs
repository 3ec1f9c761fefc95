//! What the stories of this program have in common: calls, patience, and what must hold at the
//! end of each.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use ztunnel_tests::net::Host;
use ztunnel_tests::proxy::{Mesh, Proxy};
use ztunnel_tests::traffic::{self, Answer};

/// How long anything may take that usually takes milliseconds. Machines are busy; nothing here
/// measures speed.
pub(crate) const LIMIT: Duration = Duration::from_secs(15);

/// The port on which the pods' servers listen.
pub(crate) const HTTP: u16 = 8080;

/// What every request here carries, so that a sniffer finds it.
pub(crate) const MARKER: &str = "lifecycle-in-the-clear";

/// One request on a connection of its own.
pub(crate) fn call(from: &Host, to: SocketAddr) -> io::Result<Answer> {
    from.enter(|| traffic::get(to, MARKER, LIMIT))
}

/// Calls and takes nothing but an answer.
#[track_caller]
pub(crate) fn answered(from: &Host, to: SocketAddr) -> Answer {
    match call(from, to) {
        Ok(answer) => answer,
        Err(error) => panic!("{} got no answer from {to}: {error}", from.name),
    }
}

/// Calls until there is an answer: for what follows a change and needs a moment.
#[track_caller]
pub(crate) fn answered_soon(from: &Host, to: SocketAddr) -> Answer {
    let mut last = None;
    let answer = wait(|| call(from, to).map_err(|error| last = Some(error)).ok());
    match answer {
        Some(answer) => answer,
        None => panic!("{} never got an answer from {to}: {last:?}", from.name),
    }
}

/// Calls and takes nothing but a reset: it must not look like an orderly end to the client.
#[track_caller]
pub(crate) fn reset(from: &Host, to: SocketAddr) {
    match call(from, to) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        other => panic!("{} calling {to} wanted a reset: {other:?}", from.name),
    }
}

/// Whether a connection is refused at once, as by a port without a listener.
pub(crate) fn is_refused(outcome: &io::Result<Answer>) -> bool {
    matches!(outcome, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Asks again and again, until there is something or [`LIMIT`] has passed.
pub(crate) fn wait<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        let found = ask();
        if found.is_some() || started.elapsed() > LIMIT {
            return found;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    assert!(wait(|| holds().then_some(())).is_some(), "{what} did not come true in {LIMIT:?}");
}

/// No proxy has died or panicked.
#[track_caller]
pub(crate) fn unharmed(mesh: &mut Mesh<'_>) {
    for proxy in mesh.proxies() {
        assert!(proxy.alive(), "the proxy of node {} has ended", proxy.node().name());
        no_panic(proxy);
    }
}

/// Nothing in the log of a proxy speaks of a panic.
#[track_caller]
pub(crate) fn no_panic(proxy: &Proxy<'_>) {
    let log = proxy.log();
    let panic = log.lines().find(|line| line.contains("panicked"));
    assert!(panic.is_none(), "node {}: {panic:?}", proxy.node().name());
}

/// The names of what a section of `/config_dump` lists.
pub(crate) fn listed(proxy: &Proxy<'_>, section: &str) -> Vec<String> {
    let dump = proxy.config_dump().unwrap();
    let objects = dump[section].as_array().cloned().unwrap_or_default();
    let names = objects.iter().map(|object| object["name"].as_str().unwrap_or_default().to_owned());
    names.collect()
}
