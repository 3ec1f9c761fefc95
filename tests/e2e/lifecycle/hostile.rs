//! Hostile peers at a pod's HBONE port: they are refused, the proxy does not panic, and other
//! clients are served.

mod certificates;
mod floods;
mod malformed_tls;
mod requests;
mod servers;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, identity};
use ztunnel_tests::traffic::{Kind, Server};

use crate::assertions::{self, HTTP, expect_answer};
use crate::peer::{Authority, Leaf, Secure, Tunnels, client, client_config};

const HBONE: u16 = 15008;

/// A mesh, the attacked pod, and the attacking host.
struct AttackSetup<'world> {
    mesh: Mesh<'world>,
    attacked_pod: &'world Host,
    client_pod: &'world Host,
    attacker: &'world Host,
    authority: Authority,
    _http: Server,
}

/// The handshake timeout for tests that wait for it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

impl<'world> AttackSetup<'world> {
    fn new(world: &'world World) -> Self {
        Self::with_mesh(world, Mesh::start(world).unwrap())
    }

    /// With a short handshake timeout ([`HANDSHAKE_TIMEOUT`]).
    fn with_short_handshake_timeout(world: &'world World) -> Self {
        let mesh = Mesh::builder(world).settings(|settings| {
            let timeouts =
                serde_json::json!({ "handshakeTimeout": format!("{}s", HANDSHAKE_TIMEOUT.as_secs()) });
            settings.extra.insert("hbone".to_owned(), timeouts);
        });
        Self::with_mesh(world, mesh.start().unwrap())
    }

    fn with_mesh(world: &'world World, mesh: Mesh<'world>) -> Self {
        let attacked_pod = world.pod("b", 0);
        Self {
            mesh,
            attacked_pod,
            client_pod: world.pod("a", 0),
            attacker: world.outside(),
            authority: Authority::of_mesh(world.directory()),
            _http: attacked_pod.serve(Kind::Http, HTTP).unwrap(),
        }
    }

    /// A valid certificate of a pod of the mesh, as after a theft.
    fn stolen_certificate(&self) -> Leaf {
        self.authority.leaf(&[&identity(self.client_pod)])
    }

    fn hbone(&self, family: Family) -> SocketAddr {
        self.attacked_pod.at(family, HBONE)
    }

    /// Runs the attack on the attacking host.
    fn attack<T: Send>(&self, attack: impl FnOnce() -> T + Send) -> T {
        self.attacker.enter(attack)
    }

    /// An HTTP/2 connection with a valid certificate from the attacking host.
    fn tunnels(&self, family: Family) -> Tunnels<Secure> {
        let (to, leaf) = (self.hbone(family), self.stolen_certificate());
        self.attack(|| -> io::Result<_> {
            Tunnels::open(client(to, &client_config(Some(leaf), &[b"h2"]))?)
        })
        .unwrap()
    }

    /// Asserts that no proxy has ended, and that a pod of the mesh is served.
    #[track_caller]
    fn assert_still_serving(&mut self) {
        assertions::assert_all_running(&mut self.mesh);
        for family in Family::BOTH {
            expect_answer(self.client_pod, self.attacked_pod.at(family, HTTP));
        }
    }
}
