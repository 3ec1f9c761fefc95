//! Changes that have taken effect, and assertions about open and terminated connections.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
pub(crate) use ztunnel_tests::data_path::TIMEOUT;
use ztunnel_tests::data_path::{Topology, bypasses_the_proxy};
use ztunnel_tests::net::Host;
use ztunnel_tests::proxy::{Mesh, Policy, Settings, identity};
use ztunnel_tests::traffic::{self, Answer, Stream};

/// The time limit for the termination of a connection that is no longer allowed, after the change
/// has taken effect.
pub(crate) const SOON: Duration = Duration::from_secs(1);
/// The time limit for an end to get the error of a broken connection.
const TOLD: Duration = Duration::from_secs(5);
/// The port of the servers.
pub(crate) const PORT: u16 = 8080;
/// The marker of every request, for which sniffers search.
pub(crate) const MARKER: &str = "inside-one-node";
/// The log message of changed settings that have taken effect.
const SETTINGS_APPLIED: &str = "settings loaded anew";
/// The interval of polling.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Polls until `look` returns a value.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            started.elapsed() < TIMEOUT,
            "not within {TIMEOUT:?}: {what}"
        );
        thread::sleep(POLL_INTERVAL);
    }
}

/// Changes the settings of every node and waits until they have taken effect everywhere.
#[track_caller]
pub(crate) fn change(mesh: &mut Mesh<'_>, adjust: impl FnMut(&mut Settings)) {
    let loaded = |mesh: &mut Mesh<'_>| -> Vec<usize> {
        let proxies = mesh.proxies().iter();
        proxies
            .map(|proxy| proxy.log().matches(SETTINGS_APPLIED).count())
            .collect()
    };
    let before = loaded(mesh);
    mesh.change(adjust).unwrap();
    eventually("the changed settings have taken effect", || {
        let now = loaded(mesh);
        now.iter()
            .zip(&before)
            .all(|(now, before)| now > before)
            .then_some(())
    });
}

/// Gives every workload a name for the metrics.
pub(crate) fn name_workloads(settings: &mut Settings) {
    for workload in &mut settings.workloads {
        let name = json!(workload.name);
        workload.extra.insert("workloadName".to_owned(), name);
    }
}

/// Disables the access log: the log is polled for the effect of a change, and thousands of lines
/// would make that slow.
pub(crate) fn disable_access_log(settings: &mut Settings) {
    "info,access=off".clone_into(&mut settings.log.filter);
}

/// Sets `sameNode: tunnel`.
pub(crate) fn tunnel_same_node(settings: &mut Settings) {
    let (key, value) = ("sameNode".to_owned(), json!("tunnel"));
    settings.extra.insert(key, value);
}

/// Asserts that no proxy has ended or panicked.
#[track_caller]
pub(crate) fn assert_all_running(mesh: &mut Mesh<'_>) {
    for proxy in mesh.proxies() {
        assert!(
            proxy.alive(),
            "the proxy of {} has ended",
            proxy.node().name()
        );
        let log = proxy.log();
        let panic = log.lines().find(|line| line.contains("panicked"));
        assert!(panic.is_none(), "{panic:?}");
    }
}

/// Sends one request, on any path.
pub(crate) fn call(from: &Host, to: SocketAddr) -> io::Result<Answer> {
    from.enter(|| traffic::get(to, MARKER, TIMEOUT))
}

/// An open connection after one request.
pub(crate) struct SentRequest {
    pub(crate) end: Stream,
    pub(crate) answer: Answer,
    pub(crate) direct: bool,
}

/// Connects once, sends a request, and determines the path of the connection.
pub(crate) fn send_request(
    topology: &Topology,
    from: &Host,
    to: SocketAddr,
) -> io::Result<SentRequest> {
    let mut end = topology.dial_once(from, to)?;
    let answer = traffic::get_over(&mut end, MARKER, TIMEOUT)?;
    let direct = bypasses_the_proxy(from, &end)?;
    Ok(SentRequest {
        end,
        answer,
        direct,
    })
}

/// Exchanges data in both directions.
#[track_caller]
pub(crate) fn exchange((near, far): &(Stream, Stream)) {
    let mut received = [0; 4];
    for (mut from, mut to) in [(near, far), (far, near)] {
        from.write_all(b"word").unwrap();
        to.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"word");
    }
}

/// Asserts that both ends of a connection are reset soon; it must not end in an orderly way.
#[track_caller]
pub(crate) fn assert_terminated((near, far): &mut (Stream, Stream), case: &str) {
    for (name, end) in [("client", near), ("server", far)] {
        end.set_read_timeout(Some(TOLD)).unwrap();
        let outcome = end.read(&mut [0]);
        let kind = outcome.as_ref().map_err(io::Error::kind);
        // The end whose socket was destroyed gets ECONNABORTED, the other end a reset (tcp_abort in
        // net/ipv4/tcp.c).
        let broken = [
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::ConnectionAborted,
        ];
        assert!(
            kind.is_err_and(|kind| broken.contains(&kind)),
            "{case}: the {name} saw {outcome:?}"
        );
    }
}

/// A match of one pod's identity, in the syntax of policies.
pub(crate) fn principal(pod: &Host) -> Value {
    json!({ "exact": identity(pod).trim_start_matches("spiffe://") })
}

/// A policy for the connections of one client.
pub(crate) fn policy_for(client: &Host, name: &str, action: &str) -> Policy {
    let rule = json!([[[{ "principals": [principal(client)] }]]]);
    Policy::namespace(name, action, rule)
}

/// The policy of PeerAuthentication STRICT at a node: DENY connections without a principal.
pub(crate) fn strict() -> Policy {
    Policy::namespace(
        "strict",
        "Deny",
        json!([[[{ "notPrincipals": [{ "presence": {} }] }]]]),
    )
}
