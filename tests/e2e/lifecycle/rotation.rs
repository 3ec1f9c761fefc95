//! Certificates are rotated while connections live: the connections do not notice, new ones use
//! the new certificates.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, Proxy, identity};
use ztunnel_tests::traffic::Kind;

use crate::peer::{Authority, client, client_config};
use crate::scene::{self, HTTP, LIMIT, answered};

const ECHO: u16 = 9000;
const CHUNK: usize = 64 * 1024;

fn serial(proxy: &Proxy<'_>, pod: &Host) -> String {
    let dump = proxy.config_dump().unwrap();
    let all = dump["certificates"].as_array().cloned().unwrap_or_default();
    let own = all
        .iter()
        .find(|one| one["identity"] == identity(pod).as_str());
    own.and_then(|one| one["serial"].as_str())
        .unwrap_or_default()
        .to_lowercase()
}

/// A stream of bytes that repeats nowhere near.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_exact_mut(8) {
            // xorshift64, Marsaglia 2003.
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

/// Sends noise through an echo and compares, until `enough`; returns how many bytes it was.
fn transfer(stream: TcpStream, mut enough: impl FnMut() -> bool) -> u64 {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let (mut sent, mut heard) = (vec![0; CHUNK], vec![0; CHUNK]);
    let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
    let mut total = 0;
    while !enough() {
        noise.fill(&mut sent);
        writer.write_all(&sent).unwrap();
        reader.read_exact(&mut heard).unwrap();
        assert!(sent == heard, "other bytes came back after {total}");
        total += CHUNK as u64;
        thread::sleep(Duration::from_millis(2));
    }
    total
}

#[test]
fn a_long_transfer_outlives_its_certificates() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| settings.ca.as_mut().unwrap().local.leaf_ttl = Some("4s".to_owned()))
        .start()
        .unwrap();
    let (source, server) = (world.pod("a", 0), world.pod("b", 0));
    let _echo = server.serve(Kind::Echo, ECHO).unwrap();
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    answered(source, server.at(Family::V4, HTTP));
    let stream = source
        .enter(|| TcpStream::connect(server.at(Family::V4, ECHO)))
        .unwrap();
    let mut serials = [BTreeSet::new(), BTreeSet::new()];
    let started = Instant::now();
    let total = transfer(stream, || {
        serials[0].insert(serial(mesh.proxy("a"), source));
        serials[1].insert(serial(mesh.proxy("b"), server));
        assert!(started.elapsed() < 3 * LIMIT, "no rotation: {serials:?}");
        // The first certificate has ended by then, too: it lived for four seconds.
        serials.iter().all(|seen| seen.len() >= 4) && started.elapsed() > Duration::from_secs(5)
    });
    assert!(total > 0);
    assert!(serials.iter().all(|seen| !seen.contains("")), "{serials:?}");
    for family in Family::BOTH {
        answered(source, server.at(family, HTTP));
    }
    scene::unharmed(&mut mesh);
}

#[test]
fn new_connections_are_shown_the_new_certificate() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| settings.ca.as_mut().unwrap().local.leaf_ttl = Some("8s".to_owned()))
        .start()
        .unwrap();
    let server = world.pod("b", 0);
    let leaf = Authority::of_mesh(world.directory()).leaf(&[&identity(world.pod("a", 0))]);
    let config = client_config(Some(leaf), &[b"h2"]);
    scene::eventually("a first certificate", || {
        !serial(mesh.proxy("b"), server).is_empty()
    });
    let mut shown = BTreeSet::new();
    while shown.len() < 3 {
        let last = shown.len();
        let found = scene::wait(|| {
            // Asked before and after, because it may be rotated in between.
            let before = serial(mesh.proxy("b"), server);
            let der = world.outside().enter(|| {
                let stream = client(server.at(Family::V4, 15008), &config).unwrap();
                stream.conn.peer_certificates().unwrap()[0].to_vec()
            });
            let after = serial(mesh.proxy("b"), server);
            let holds = holds(&der, &before) || holds(&der, &after);
            assert!(holds, "neither {before} nor {after} was shown");
            shown.insert(before);
            (shown.len() > last).then_some(())
        });
        assert!(
            found.is_some(),
            "the same certificate was shown for {LIMIT:?}"
        );
    }
    scene::unharmed(&mut mesh);
}

/// Whether a certificate holds the bytes of a serial number.
fn holds(der: &[u8], serial: &str) -> bool {
    let bytes: Vec<u8> = (0..serial.len() / 2)
        .map(|at| u8::from_str_radix(&serial[at * 2..at * 2 + 2], 16).unwrap())
        .collect();
    assert!(bytes.len() >= 8, "{serial:?} is no serial number");
    der.windows(bytes.len()).any(|window| window == bytes)
}
