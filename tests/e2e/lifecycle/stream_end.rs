//! The end of a tunnel: the application gets every byte that the peer has sent, and then the end
//! that the peer meant: an orderly end after END_STREAM and after the resets with which Envoy ends
//! a tunnel, otherwise a reset. The peer is scripted and sends everything in one write.

mod envoy;

use std::io::{self, ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Socket, Type};
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, identity, service_hostname, workload_uid};

use crate::assertions::{self, HTTP, LIMIT};
use crate::peer::{
    Authority, CODES, Kind, Reply, Scripted, Tunnels, client, client_config, connect, frame,
};

const HBONE: u16 = 15008;
const END_STREAM: u8 = 1;
/// Smaller than the window of a stream, and larger than the buffer of a slow reader.
const SENT: usize = 600_000;

/// The end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TunnelEnd {
    EndStream,
    Reset(u32),
    GoAway,
}

/// The end that the application sees after the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExpectedEnd {
    Orderly,
    Reset,
}

const ENDS: [(&[TunnelEnd], ExpectedEnd); 8] = [
    // Envoy 1.36 to 1.39, and 1.40 as a TCP waypoint.
    (
        &[TunnelEnd::EndStream, TunnelEnd::Reset(CODES.no_error)],
        ExpectedEnd::Orderly,
    ),
    // Envoy 1.40 as an HTTP waypoint.
    (
        &[TunnelEnd::Reset(CODES.connect_error)],
        ExpectedEnd::Orderly,
    ),
    (&[TunnelEnd::Reset(CODES.no_error)], ExpectedEnd::Orderly),
    (
        &[
            TunnelEnd::GoAway,
            TunnelEnd::EndStream,
            TunnelEnd::Reset(CODES.no_error),
        ],
        ExpectedEnd::Orderly,
    ),
    (
        &[TunnelEnd::EndStream, TunnelEnd::Reset(CODES.cancel)],
        ExpectedEnd::Orderly,
    ),
    (
        &[TunnelEnd::EndStream, TunnelEnd::Reset(CODES.internal_error)],
        ExpectedEnd::Orderly,
    ),
    (&[TunnelEnd::Reset(CODES.cancel)], ExpectedEnd::Reset),
    (
        &[TunnelEnd::Reset(CODES.internal_error)],
        ExpectedEnd::Reset,
    ),
];

/// The byte at a position of the stream; 251 divides no buffer size.
fn pattern(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap()
}

/// The frames of a script for a stream.
fn script(ends: &[TunnelEnd], stream: u32) -> Vec<u8> {
    let bytes: Vec<u8> = (0..SENT).map(pattern).collect();
    let mut script: Vec<u8> = bytes
        .chunks(16 << 10)
        .flat_map(|chunk| frame(Kind::Data, 0, stream, chunk))
        .collect();
    for end in ends {
        script.extend(match end {
            TunnelEnd::EndStream => frame(Kind::Data, END_STREAM, stream, &[]),
            TunnelEnd::Reset(code) => frame(Kind::Reset, 0, stream, &code.to_be_bytes()),
            TunnelEnd::GoAway => {
                let body = [stream.to_be_bytes(), CODES.no_error.to_be_bytes()].concat();
                frame(Kind::GoAway, 0, 0, &body)
            }
        });
    }
    script
}

/// The reading behaviour of the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Fast,
    /// With a small buffer and pauses.
    Slow,
}

const READERS: [Reader; 2] = [Reader::Fast, Reader::Slow];

impl Reader {
    fn socket(self) -> Socket {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if self == Self::Slow {
            socket.set_recv_buffer_size(64 << 10).unwrap();
        }
        socket.set_reuse_address(true).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    }

    /// Reads to the end or the error. Returns the number of bytes, and the error.
    fn read(self, mut stream: &TcpStream) -> (usize, io::Result<()>) {
        let mut room = vec![
            0;
            if self == Self::Slow {
                8 << 10
            } else {
                64 << 10
            }
        ];
        let mut total = 0;
        loop {
            if self == Self::Slow {
                thread::sleep(Duration::from_millis(2));
            }
            match stream.read(&mut room) {
                Ok(0) => return (total, Ok(())),
                Ok(count) => {
                    for byte in &room[..count] {
                        assert_eq!(*byte, pattern(total));
                        total += 1;
                    }
                }
                Err(error) => return (total, Err(error)),
            }
        }
    }
}

#[track_caller]
fn assert_complete((read, end): (usize, io::Result<()>), seen: ExpectedEnd, case: &str) {
    assert_eq!(read, SENT, "{case}: {end:?}");
    let kind = end.map_err(|error| error.kind());
    let expected = match seen {
        ExpectedEnd::Orderly => Ok(()),
        ExpectedEnd::Reset => Err(ErrorKind::ConnectionReset),
    };
    assert_eq!(kind, expected, "{case}");
}

/// A mesh with a waypoint, which no proxy serves, for the service of pod `b-0`.
fn mesh(world: &World, port: u16) -> Mesh<'_> {
    let (server, waypoint) = (world.pod("b", 0), world.pod("b", 1));
    let adjusted = Mesh::builder(world).settings(move |settings| {
        settings
            .pods
            .retain(|pod| pod.workload != workload_uid(waypoint));
        for service in &mut settings.services {
            if service.hostname == service_hostname(server) {
                let at =
                    json!({ "destination": format!("/{}", waypoint.v4), "hboneMtlsPort": port });
                service.extra.insert("waypoint".to_owned(), at);
            }
        }
    });
    adjusted.start().unwrap()
}

/// The lines of a node's access log about connections that ended with an error.
fn errors(mesh: &mut Mesh<'_>, node: &str) -> Vec<String> {
    let log = mesh.proxy(node).log();
    let lines = log.lines().filter(|line| {
        line.contains("connection complete") && (line.contains("ERROR") || line.contains("error="))
    });
    lines.map(str::to_owned).collect()
}

#[test]
fn an_answer_through_a_waypoint_is_complete_for_each_kind_of_end() {
    let world = World::two_nodes().unwrap();
    let (client, server, waypoint) = (world.pod("a", 0), world.pod("b", 0), world.pod("b", 1));
    let mut mesh = mesh(&world, HBONE);
    let leaf = Authority::of_mesh(world.directory()).leaf(&[&identity(waypoint)]);
    let scripted = Scripted::start(waypoint, HBONE, leaf);
    let to = Mesh::service(server).at(Family::V4, 80);
    for (ends, seen) in ENDS {
        scripted.set_script(move |stream| script(ends, stream));
        let before = errors(&mut mesh, "a").len();
        for reader in READERS {
            for number in 0..5 {
                let case = format!("{ends:?}, {reader:?}, {number}");
                let stream = connect_with_reader(client, to, reader);
                assert_complete(reader.read(&stream), seen, &case);
            }
        }
        match seen {
            ExpectedEnd::Orderly => {
                let error_lines = errors(&mut mesh, "a");
                assert_eq!(
                    error_lines.len(),
                    before,
                    "{ends:?}: {:?}",
                    error_lines.last()
                );
            }
            ExpectedEnd::Reset => {
                assertions::eventually("a log line about the reset of the tunnel", || {
                    let error_lines = errors(&mut mesh, "a");
                    error_lines[before..].iter().any(|line| {
                        line.contains("tunnel to the waypoint: the peer reset the tunnel with")
                    })
                })
            }
        }
    }
    assertions::assert_all_running(&mut mesh);
}

fn connect_with_reader(client: &Host, to: SocketAddr, reader: Reader) -> TcpStream {
    client.enter(|| {
        let socket = reader.socket();
        socket.connect_timeout(&to.into(), LIMIT).unwrap();
        socket.into()
    })
}

#[test]
fn a_request_is_complete_for_each_kind_of_end() {
    let world = World::two_nodes().unwrap();
    let (server, caller) = (world.pod("b", 0), world.pod("b", 1));
    let mut mesh = mesh(&world, HBONE);
    let leaf = Authority::of_mesh(world.directory()).leaf(&[&identity(caller)]);
    let config = client_config(Some(leaf), &[b"h2"]);
    let to = server.at(Family::V4, HBONE);
    for reader in READERS {
        let listener = server.enter(|| {
            let socket = reader.socket();
            let any = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), HTTP);
            socket.bind(&any.into()).unwrap();
            socket.listen(16).unwrap();
            std::net::TcpListener::from(socket)
        });
        for (ends, seen) in ENDS {
            let case = format!("{ends:?}, {reader:?}");
            let mut tunnels = caller
                .enter(|| -> io::Result<_> { Tunnels::open(client(to, &config)?) })
                .unwrap();
            let authority = server.at(Family::V4, HTTP).to_string();
            tunnels.request(1, &connect(&authority)).unwrap();
            let (app, _) = listener.accept().unwrap();
            app.set_read_timeout(Some(LIMIT)).unwrap();
            assert_eq!(tunnels.reply(1), Reply::Status(200), "{case}");
            tunnels.raw(&script(ends, 1)).unwrap();
            assert_complete(reader.read(&app), seen, &case);
        }
    }
    assertions::assert_all_running(&mut mesh);
}
