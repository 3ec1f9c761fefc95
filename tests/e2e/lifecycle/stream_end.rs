//! However a peer ends a tunnel, the application gets every byte that came before, and then the
//! end that the peer has meant: an orderly one after END_STREAM and after the resets by which Envoy
//! ends a tunnel, a reset after any other. The peer is a script, and says all in one write.

mod envoy;

use std::io::{self, ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Socket, Type};
use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::proxy::{Mesh, identity, service_hostname, workload_uid};

use crate::peer::{
    Authority, CODES, Kind, Reply, Scripted, Tunnels, client, client_config, connect, frame,
};
use crate::scene::{self, HTTP, LIMIT};

const HBONE: u16 = 15008;
const END_STREAM: u8 = 1;
/// Less than the window of a stream, and more than the room of a slow reader.
const SENT: usize = 600_000;

/// How a tunnel ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Stream,
    Reset(u32),
    GoAway,
}

/// What the application sees after the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    End,
    Reset,
}

const ENDS: [(&[End], Seen); 8] = [
    // Envoy 1.36 to 1.39, and 1.40 where it carries TCP.
    (&[End::Stream, End::Reset(CODES.no_error)], Seen::End),
    // Envoy 1.40 where it carries HTTP.
    (&[End::Reset(CODES.connect_error)], Seen::End),
    (&[End::Reset(CODES.no_error)], Seen::End),
    (
        &[End::GoAway, End::Stream, End::Reset(CODES.no_error)],
        Seen::End,
    ),
    (&[End::Stream, End::Reset(CODES.cancel)], Seen::End),
    (&[End::Stream, End::Reset(CODES.internal_error)], Seen::End),
    (&[End::Reset(CODES.cancel)], Seen::Reset),
    (&[End::Reset(CODES.internal_error)], Seen::Reset),
];

/// The byte at a place of a stream; 251 divides no buffer's size.
fn pattern(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap()
}

/// The frames of a script on a stream.
fn script(ends: &[End], stream: u32) -> Vec<u8> {
    let bytes: Vec<u8> = (0..SENT).map(pattern).collect();
    let mut script: Vec<u8> = bytes
        .chunks(16 << 10)
        .flat_map(|chunk| frame(Kind::Data, 0, stream, chunk))
        .collect();
    for end in ends {
        script.extend(match end {
            End::Stream => frame(Kind::Data, END_STREAM, stream, &[]),
            End::Reset(code) => frame(Kind::Reset, 0, stream, &code.to_be_bytes()),
            End::GoAway => {
                let body = [stream.to_be_bytes(), CODES.no_error.to_be_bytes()].concat();
                frame(Kind::GoAway, 0, 0, &body)
            }
        });
    }
    script
}

/// How the application reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Fast,
    /// With little room, a little at a time.
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

    /// Reads to the end, whatever that is.
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
fn is_whole((read, end): (usize, io::Result<()>), seen: Seen, case: &str) {
    assert_eq!(read, SENT, "{case}: {end:?}");
    let kind = end.map_err(|error| error.kind());
    let expected = match seen {
        Seen::End => Ok(()),
        Seen::Reset => Err(ErrorKind::ConnectionReset),
    };
    assert_eq!(kind, expected, "{case}");
}

/// A mesh in which a waypoint that no proxy serves is in front of the service of pod `b-0`.
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
fn an_answer_through_a_waypoint_is_whole_however_the_waypoint_ends_it() {
    let world = World::two_nodes().unwrap();
    let (client, server, waypoint) = (world.pod("a", 0), world.pod("b", 0), world.pod("b", 1));
    let mut mesh = mesh(&world, HBONE);
    let leaf = Authority::of_mesh(world.directory()).leaf(&[&identity(waypoint)]);
    let scripted = Scripted::start(waypoint, HBONE, leaf);
    let to = Mesh::service(server).at(Family::V4, 80);
    for (ends, seen) in ENDS {
        scripted.plays(move |stream| script(ends, stream));
        let before = errors(&mut mesh, "a").len();
        for reader in READERS {
            for number in 0..5 {
                let case = format!("{ends:?}, {reader:?}, {number}");
                let stream = called(client, to, reader);
                is_whole(reader.read(&stream), seen, &case);
            }
        }
        match seen {
            Seen::End => {
                let said = errors(&mut mesh, "a");
                assert_eq!(said.len(), before, "{ends:?}: {:?}", said.last());
            }
            Seen::Reset => scene::eventually("the log says who reset the tunnel", || {
                let said = errors(&mut mesh, "a");
                said[before..].iter().any(|line| {
                    line.contains("tunnel to the waypoint: the peer reset the tunnel with")
                })
            }),
        }
    }
    scene::unharmed(&mut mesh);
}

fn called(client: &Host, to: SocketAddr, reader: Reader) -> TcpStream {
    client.enter(|| {
        let socket = reader.socket();
        socket.connect_timeout(&to.into(), LIMIT).unwrap();
        socket.into()
    })
}

#[test]
fn a_request_is_whole_however_the_client_of_the_tunnel_ends_it() {
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
            is_whole(reader.read(&app), seen, &case);
        }
    }
    scene::unharmed(&mut mesh);
}
