//! What the stories of this program have in common: changes that are in force, connections that
//! are alive, and connections that were cut.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
pub(crate) use ztunnel_tests::lane::PATIENCE;
use ztunnel_tests::lane::{Scene, bypasses_the_proxy};
use ztunnel_tests::net::Host;
use ztunnel_tests::proxy::{Mesh, Policy, Settings, identity};
use ztunnel_tests::traffic::{self, Answer, End};

/// How soon a connection that is no longer allowed has ended, once the change is in force.
pub(crate) const SOON: Duration = Duration::from_secs(1);
/// How long an end may take to be told that its connection broke; without being told it waits for ever.
const TOLD: Duration = Duration::from_secs(5);
/// The port of the servers.
pub(crate) const PORT: u16 = 8080;
/// What every request here carries, so that a sniffer finds it.
pub(crate) const MARKER: &str = "said-on-one-node";
/// What a proxy logs when changed settings are in force.
const IN_FORCE: &str = "settings loaded anew";
/// Between two looks at something that becomes true later.
const PACE: Duration = Duration::from_millis(10);

/// Waits until `look` finds something.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        thread::sleep(PACE);
    }
}

/// Changes the settings of every node and waits until they are in force everywhere.
#[track_caller]
pub(crate) fn change(mesh: &mut Mesh<'_>, adjust: impl FnMut(&mut Settings)) {
    let loaded = |mesh: &mut Mesh<'_>| -> Vec<usize> {
        let proxies = mesh.proxies().iter();
        proxies
            .map(|proxy| proxy.log().matches(IN_FORCE).count())
            .collect()
    };
    let before = loaded(mesh);
    mesh.change(adjust).unwrap();
    eventually("the changed settings are in force", || {
        let now = loaded(mesh);
        now.iter()
            .zip(&before)
            .all(|(now, before)| now > before)
            .then_some(())
    });
}

/// Gives every workload the name that metrics show.
pub(crate) fn name_workloads(settings: &mut Settings) {
    for workload in &mut settings.workloads {
        let name = json!(workload.name);
        workload.extra.insert("workloadName".to_owned(), name);
    }
}

/// No lines about connections: the log tells when a change is in force, and need not tell of
/// thousands of connections.
pub(crate) fn quiet(settings: &mut Settings) {
    "info,access=off".clone_into(&mut settings.log.filter);
}

/// No pods of one node talk without a tunnel.
pub(crate) fn tunnel_inside(settings: &mut Settings) {
    let (key, value) = ("sameNode".to_owned(), json!("tunnel"));
    settings.extra.insert(key, value);
}

/// No proxy has died or panicked.
#[track_caller]
pub(crate) fn unharmed(mesh: &mut Mesh<'_>) {
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

/// One request, on whatever lane it goes.
pub(crate) fn call(from: &Host, to: SocketAddr) -> io::Result<Answer> {
    from.enter(|| traffic::get(to, MARKER, PATIENCE))
}

/// A connection that was opened once, said one request, and still is open.
pub(crate) struct Asked {
    pub(crate) end: End,
    pub(crate) answer: Answer,
    pub(crate) direct: bool,
}

/// Connects once, asks once, and tells which way it went.
pub(crate) fn ask(scene: &Scene, from: &Host, to: SocketAddr) -> io::Result<Asked> {
    let mut end = scene.knock(from, to)?;
    let answer = traffic::get_over(&mut end, MARKER, PATIENCE)?;
    let direct = bypasses_the_proxy(from, &end)?;
    Ok(Asked {
        end,
        answer,
        direct,
    })
}

/// Both ends hear each other.
#[track_caller]
pub(crate) fn speak((near, far): &(End, End)) {
    let mut heard = [0; 4];
    for (mut from, mut to) in [(near, far), (far, near)] {
        from.write_all(b"word").unwrap();
        to.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"word");
    }
}

/// Both ends of a connection are told that it broke, soon: nobody takes it for an orderly end.
#[track_caller]
pub(crate) fn cut((near, far): &mut (End, End), case: &str) {
    for (name, end) in [("client", near), ("server", far)] {
        end.set_read_timeout(Some(TOLD)).unwrap();
        let outcome = end.read(&mut [0]);
        let kind = outcome.as_ref().map_err(io::Error::kind);
        // The end whose socket was destroyed learns ECONNABORTED, the other one gets its reset
        // (tcp_abort in net/ipv4/tcp.c).
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

/// A match of one pod's identity, as policies write it.
pub(crate) fn principal(pod: &Host) -> Value {
    json!({ "exact": identity(pod).trim_start_matches("spiffe://") })
}

/// A policy about the connections of one client.
pub(crate) fn about(client: &Host, name: &str, action: &str) -> Policy {
    let rule = json!([[[{ "principals": [principal(client)] }]]]);
    Policy::namespace(name, action, rule)
}

/// What PeerAuthentication STRICT becomes at a node: DENY, where no principal is present.
pub(crate) fn strict() -> Policy {
    Policy::namespace(
        "strict",
        "Deny",
        json!([[[{ "notPrincipals": [{ "presence": {} }] }]]]),
    )
}
