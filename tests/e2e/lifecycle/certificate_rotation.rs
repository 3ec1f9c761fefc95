//! Certificates are rotated while connections are open: open connections are not affected, new ones
//! use the new certificates.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, Proxy, identity};
use ztunnel_tests::traffic::Kind;

use crate::assertions::{self, HTTP, LIMIT, expect_answer};
use crate::peer::{Authority, client, client_config};

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

/// A pseudo-random byte stream.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_exact_mut(8) {
            // xorshift64 (Marsaglia 2003).
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

/// Sends noise to an echo and compares the echo until `enough` returns true. Returns the number of
/// bytes.
fn transfer(stream: TcpStream, mut enough: impl FnMut() -> bool) -> u64 {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let (mut sent, mut received) = (vec![0; CHUNK], vec![0; CHUNK]);
    let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
    let mut total = 0;
    while !enough() {
        noise.fill(&mut sent);
        writer.write_all(&sent).unwrap();
        reader.read_exact(&mut received).unwrap();
        assert!(sent == received, "the echo differs after {total} bytes");
        total += CHUNK as u64;
        thread::sleep(Duration::from_millis(2));
    }
    total
}

#[test]
fn a_transfer_continues_across_certificate_rotations() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| settings.ca.as_mut().unwrap().local.leaf_ttl = Some("4s".to_owned()))
        .start()
        .unwrap();
    let (source, server) = (world.pod("a", 0), world.pod("b", 0));
    let _echo = server.serve(Kind::Echo, ECHO).unwrap();
    let _http = server.serve(Kind::Http, HTTP).unwrap();
    expect_answer(source, server.at(Family::V4, HTTP));
    let stream = source
        .enter(|| TcpStream::connect(server.at(Family::V4, ECHO)))
        .unwrap();
    let mut serials = [BTreeSet::new(), BTreeSet::new()];
    let started = Instant::now();
    let total = transfer(stream, || {
        serials[0].insert(serial(mesh.proxy("a"), source));
        serials[1].insert(serial(mesh.proxy("b"), server));
        assert!(started.elapsed() < 3 * LIMIT, "no rotation: {serials:?}");
        // The first certificate has expired by then: its lifetime is four seconds.
        serials.iter().all(|seen| seen.len() >= 4) && started.elapsed() > Duration::from_secs(5)
    });
    assert!(total > 0);
    assert!(serials.iter().all(|seen| !seen.contains("")), "{serials:?}");
    for family in Family::BOTH {
        expect_answer(source, server.at(family, HTTP));
    }
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn new_connections_use_the_new_certificate() {
    let world = World::two_nodes().unwrap();
    let mut mesh = Mesh::builder(&world)
        .settings(|settings| settings.ca.as_mut().unwrap().local.leaf_ttl = Some("8s".to_owned()))
        .start()
        .unwrap();
    let server = world.pod("b", 0);
    let leaf = Authority::of_mesh(world.directory()).leaf(&[&identity(world.pod("a", 0))]);
    let config = client_config(Some(leaf), &[b"h2"]);
    assertions::eventually("a first certificate", || {
        !serial(mesh.proxy("b"), server).is_empty()
    });
    let mut presented = BTreeSet::new();
    while presented.len() < 3 {
        let last = presented.len();
        let found = assertions::wait(|| {
            // Read before and after the connection, because the certificate may be rotated in
            // between.
            let before = serial(mesh.proxy("b"), server);
            let der = world.outside().enter(|| {
                let stream = client(server.at(Family::V4, 15008), &config).unwrap();
                stream.conn.peer_certificates().unwrap()[0].to_vec()
            });
            let after = serial(mesh.proxy("b"), server);
            let holds = holds(&der, &before) || holds(&der, &after);
            assert!(holds, "the peer presented neither {before} nor {after}");
            presented.insert(before);
            (presented.len() > last).then_some(())
        });
        assert!(
            found.is_some(),
            "the certificate has not changed within {LIMIT:?}"
        );
    }
    assertions::assert_all_running(&mut mesh);
}

/// Whether a certificate contains the bytes of a serial number.
fn holds(der: &[u8], serial: &str) -> bool {
    let bytes: Vec<u8> = (0..serial.len() / 2)
        .map(|at| u8::from_str_radix(&serial[at * 2..at * 2 + 2], 16).unwrap())
        .collect();
    assert!(bytes.len() >= 8, "{serial:?} is not a serial number");
    der.windows(bytes.len()).any(|window| window == bytes)
}
