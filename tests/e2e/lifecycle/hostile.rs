//! Whatever a peer does at a pod's HBONE port, it is refused, the proxy lives on without a
//! panic, and everybody else is served.

mod certificates;
mod floods;
mod noise;
mod requests;
mod servers;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, identity};
use ztunnel_tests::traffic::{Kind, Server};

use crate::peer::{Authority, Leaf, Secure, Tunnels, client, client_config};
use crate::scene::{self, HTTP, answered};

const HBONE: u16 = 15008;

/// A mesh, a pod that is attacked, and a host from which it is attacked.
struct Stage<'world> {
    mesh: Mesh<'world>,
    victim: &'world Host,
    friend: &'world Host,
    attacker: &'world Host,
    authority: Authority,
    _http: Server,
}

/// How long a handshake may take where the stage is hasty.
const HASTE: Duration = Duration::from_secs(2);

impl<'world> Stage<'world> {
    fn set(world: &'world World) -> Self {
        Self::around(world, Mesh::start(world).unwrap())
    }

    /// For tests in which somebody waits until the proxy gives a handshake up, after [`HASTE`].
    fn hasty(world: &'world World) -> Self {
        let mesh = Mesh::builder(world).settings(|settings| {
            let timeouts =
                serde_json::json!({ "handshakeTimeout": format!("{}s", HASTE.as_secs()) });
            settings.extra.insert("hbone".to_owned(), timeouts);
        });
        Self::around(world, mesh.start().unwrap())
    }

    fn around(world: &'world World, mesh: Mesh<'world>) -> Self {
        let victim = world.pod("b", 0);
        Self {
            mesh,
            victim,
            friend: world.pod("a", 0),
            attacker: world.outside(),
            authority: Authority::of_mesh(world.directory()),
            _http: victim.serve(Kind::Http, HTTP).unwrap(),
        }
    }

    /// A certificate of a pod of the mesh, as somebody who stole it would have it.
    fn stolen(&self) -> Leaf {
        self.authority.leaf(&[&identity(self.friend)])
    }

    fn hbone(&self, family: Family) -> SocketAddr {
        self.victim.at(family, HBONE)
    }

    /// Does something on the attacking host.
    fn attack<T: Send>(&self, deed: impl FnOnce() -> T + Send) -> T {
        self.attacker.enter(deed)
    }

    /// An HTTP/2 connection with a good certificate, from the attacking host.
    fn tunnels(&self, family: Family) -> Tunnels<Secure> {
        let (to, leaf) = (self.hbone(family), self.stolen());
        self.attack(|| -> io::Result<_> {
            Tunnels::open(client(to, &client_config(Some(leaf), &[b"h2"]))?)
        })
        .unwrap()
    }

    /// After an attack: nobody died, and a pod of the mesh is served.
    #[track_caller]
    fn stands(&mut self) {
        scene::unharmed(&mut self.mesh);
        for family in Family::BOTH {
            answered(self.friend, self.victim.at(family, HTTP));
        }
    }
}
