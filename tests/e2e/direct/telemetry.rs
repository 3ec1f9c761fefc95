//! A connection on the fast path has the same metrics and access log lines at both ends as one that
//! the proxy carried.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use ztunnel_tests::data_path::{DataPath, Topology, bypasses_the_proxy};
use ztunnel_tests::net::Family;
use ztunnel_tests::on_paths;
use ztunnel_tests::proxy::{Mesh, Proxy, identity};
use ztunnel_tests::traffic::{Kind, Stream};

use crate::assertions::{PORT, assert_all_running, eventually, name_workloads, send_request};

const OPENED: &str = "istio_tcp_connections_opened_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";
const FAILED: &str = "istio_tcp_connections_failed_total";
/// Bytes from the client to the server, for both reporters.
const RECEIVED: &str = "istio_tcp_received_bytes_total";
/// Bytes from the server to the client, for both reporters.
const SENT: &str = "istio_tcp_sent_bytes_total";

/// Not a multiple of any buffer size, and larger than a window.
const REQUEST: usize = 1_234_567;
const RESPONSE: usize = 3_456_789;
/// The shortest duration of the connection.
const HELD: Duration = Duration::from_millis(300);

/// The node and the reporter of each end.
fn reporters(data_path: DataPath) -> [(&'static str, &'static str); 2] {
    [("a", "source"), (data_path.server_node(), "destination")]
}

fn transfer(mut from: &Stream, mut to: &Stream, bytes: usize) {
    thread::scope(|scope| {
        scope.spawn(|| from.write_all(&vec![9; bytes]).unwrap());
        to.read_exact(&mut vec![0; bytes]).unwrap();
    });
}

fn is_at_end(mut end: &Stream) {
    assert_eq!(end.read(&mut [0]).unwrap(), 0);
}

/// A way of closing a connection after all data was transferred.
type Close = fn(near: Stream, far: Stream);

const CLOSES: [(&str, Close); 5] = [
    ("the client closes first", |near, far| {
        drop(near);
        is_at_end(&far);
    }),
    ("the server closes first", |near, far| {
        drop(far);
        is_at_end(&near);
    }),
    ("the client half-closes", |near, far| {
        near.shutdown(Shutdown::Write).unwrap();
        is_at_end(&far);
        drop(far);
        is_at_end(&near);
    }),
    ("the server half-closes", |near, far| {
        far.shutdown(Shutdown::Write).unwrap();
        is_at_end(&near);
        drop(near);
        is_at_end(&far);
    }),
    ("both close at once", |near, far| {
        thread::scope(|scope| {
            scope.spawn(|| drop(near));
            scope.spawn(|| drop(far));
        });
    }),
];

fn sum(proxy: &Proxy<'_>, name: &str, reporter: &str) -> f64 {
    let labels = [("reporter", reporter)];
    proxy.metrics().unwrap().sum(name, &labels)
}

on_paths!(all_bytes_are_counted_for_each_kind_of_close: tunnel, direct, joined, auto);
fn all_bytes_are_counted_for_each_kind_of_close(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let listener = topology.listen(topology.server(), PORT).unwrap();
    let service = Mesh::service(topology.server());
    let mut carried = 0;
    for (how, part) in CLOSES {
        for to in [
            topology.server().at(Family::V4, PORT),
            service.at(Family::V6, 80),
        ] {
            let (near, far) = topology.connect(to, &listener).unwrap();
            transfer(&near, &far, REQUEST);
            transfer(&far, &near, RESPONSE);
            part(near, far);
            carried += 1;
            for (node, reporter) in reporters(data_path) {
                let proxy = mesh.proxy(node);
                let wanted = [
                    (OPENED, topology.dialled() as f64),
                    (CLOSED, topology.dialled() as f64),
                    (RECEIVED, f64::from(carried) * REQUEST as f64),
                    (SENT, f64::from(carried) * RESPONSE as f64),
                    (FAILED, 0.0),
                ];
                eventually_equal(proxy, reporter, &wanted, &format!("{how}, to {to}"));
            }
        }
    }
    assert_all_running(&mut mesh);
}

/// Waits until the metrics have these values. If they do not, prints the last values.
fn eventually_equal(proxy: &Proxy<'_>, reporter: &str, wanted: &[(&str, f64)], case: &str) {
    let now = || -> Vec<f64> {
        let names = wanted.iter();
        names.map(|(name, _)| sum(proxy, name, reporter)).collect()
    };
    let reached = ztunnel_tests::eventually(Duration::from_secs(10), || {
        let values = wanted.iter().map(|(_, value)| *value);
        now().into_iter().eq(values)
    });
    assert!(
        reached,
        "{case}: {reporter} says {:?}, wanted {wanted:?}",
        now()
    );
}

/// The lines of the access log about connections with the response of this test.
fn lines(proxy: &Proxy<'_>) -> Vec<Value> {
    let log = proxy.log();
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["scope"] == "access")
        .filter(|line| line["bytes_sent"] == RESPONSE || line["bytes_recv"] == RESPONSE)
        .collect()
}

fn milliseconds(line: &Value) -> u64 {
    let text = line["duration"].as_str().unwrap();
    text.strip_suffix("ms").unwrap().parse().unwrap()
}

on_paths!(the_access_log_has_the_fields_of_both_ends: tunnel, direct, joined);
fn the_access_log_has_the_fields_of_both_ends(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = topology
        .mesh()
        .settings(|settings| "json".clone_into(&mut settings.log.format))
        .start()
        .unwrap();
    let (client, server) = (topology.client(), topology.server());
    let listener = topology.listen(server, PORT).unwrap();
    let to = Mesh::service(server).at(Family::V4, 80);
    let (near, far) = topology.connect(to, &listener).unwrap();
    let source = near.local_addr().unwrap();
    transfer(&near, &far, REQUEST);
    thread::sleep(HELD);
    transfer(&far, &near, RESPONSE);
    drop(near);
    is_at_end(&far);
    drop(far);

    for ((node, reporter), direction) in reporters(data_path)
        .into_iter()
        .zip(["outbound", "inbound"])
    {
        let proxy = mesh.proxy(node);
        let line = eventually("a line of the access log", || {
            lines(proxy)
                .into_iter()
                .find(|line| line["direction"] == direction)
        });
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        assert_eq!(text("src.workload"), client.name, "{line}");
        assert_eq!(text("src.namespace"), "default");
        assert_eq!(text("src.identity"), identity(client));
        assert_eq!(text("dst.workload"), server.name);
        assert_eq!(text("dst.namespace"), "default");
        assert_eq!(text("dst.identity"), identity(server));
        if reporter == "source" || data_path.bypasses_the_proxy() {
            assert_eq!(text("src.addr"), source.to_string());
        }
        let backend = server.at(Family::V4, PORT).to_string();
        if data_path.bypasses_the_proxy() {
            assert_eq!(text("dst.addr"), backend);
            assert!(line.get("dst.hbone_addr").is_none(), "{line}");
        } else {
            assert_eq!(text("dst.hbone_addr"), backend);
        }
        let sent_first = reporter == "source";
        let (sent, received) = if sent_first {
            (REQUEST, RESPONSE)
        } else {
            (RESPONSE, REQUEST)
        };
        assert_eq!(line["bytes_sent"], sent, "{line}");
        assert_eq!(line["bytes_recv"], received, "{line}");
        let duration = Duration::from_millis(milliseconds(&line));
        assert!(duration >= HELD && duration < 100 * HELD, "{line}");
        assert_eq!(line["level"], "info");
    }
    assert_all_running(&mut mesh);
}

on_paths!(the_metrics_have_the_labels_of_a_tunnel_without_encryption: tunnel, direct, joined);
fn the_metrics_have_the_labels_of_a_tunnel_without_encryption(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = topology.mesh().settings(name_workloads).start().unwrap();
    let (client, server) = (topology.client(), topology.server());
    let _running = topology.serve(Kind::Http, PORT).unwrap();
    let service = Mesh::service(server);
    for family in Family::BOTH {
        topology.get(service.at(family, 80), "labelled").unwrap();
    }
    let security = match data_path {
        DataPath::Tunnel => "mutual_tls",
        _ => "unknown",
    };
    let hostname = ztunnel_tests::proxy::service_hostname(server);
    for (node, reporter) in reporters(data_path) {
        let proxy = mesh.proxy(node);
        eventually("every connection is counted as closed", || {
            (sum(proxy, CLOSED, reporter) == topology.dialled() as f64).then_some(())
        });
        let metrics = proxy.metrics().unwrap();
        let (one, other) = (identity(client), identity(server));
        let wanted: BTreeMap<_, _> = [
            ("source_workload", client.name.as_str()),
            ("source_principal", &one),
            ("destination_workload", &server.name),
            ("destination_principal", &other),
            ("destination_service", &hostname),
            ("connection_security_policy", security),
            ("request_protocol", "tcp"),
            ("response_flags", "-"),
        ]
        .into();
        for name in [OPENED, CLOSED] {
            let labels = [("reporter", reporter)];
            let samples: Vec<_> = metrics.find(name, &labels).collect();
            // Connections through the proxy and on the fast path are in one series.
            assert_eq!(samples.len(), 1, "{name}: {samples:?}");
            for (label, value) in &wanted {
                assert_eq!(
                    samples[0].label(label),
                    *value,
                    "{name} {label}, {reporter}"
                );
            }
        }
    }
    assert_all_running(&mut mesh);
}

on_paths!(a_port_without_a_listener_is_counted_as_a_failure: direct, joined);
fn a_port_without_a_listener_is_counted_as_a_failure(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let running = topology.serve(Kind::Http, PORT).unwrap();
    for family in Family::BOTH {
        topology
            .get(topology.server().at(family, PORT), "first")
            .unwrap();
    }
    drop(running);
    let succeeded = topology.dialled() as f64;
    for family in Family::BOTH {
        for _ in 0..3 {
            let to = topology.server().at(family, PORT);
            let error = topology.dial_once(topology.client(), to).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
        }
    }
    let proxy = mesh.proxy("a");
    for reporter in ["source", "destination"] {
        let wanted = [
            (OPENED, succeeded + 6.0),
            (CLOSED, succeeded + 6.0),
            (FAILED, 6.0),
        ];
        eventually_equal(proxy, reporter, &wanted, "refused connections");
    }
    let refused = [("response_flags", "CONNECT")];
    assert_eq!(proxy.metrics().unwrap().sum(FAILED, &refused), 12.0);
    assert_all_running(&mut mesh);
}

on_paths!(a_reset_connection_is_recorded_with_its_bytes: tunnel, direct, joined);
fn a_reset_connection_is_recorded_with_its_bytes(data_path: DataPath) {
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let listener = topology.listen(topology.server(), PORT).unwrap();
    let to = topology.server().at(Family::V4, PORT);
    for (round, client_resets) in [(1, true), (2, false)] {
        let (near, far) = topology.connect(to, &listener).unwrap();
        transfer(&near, &far, REQUEST);
        transfer(&far, &near, RESPONSE);
        let (aborting, peer) = if client_resets {
            (near, far)
        } else {
            (far, near)
        };
        SockRef::from(&aborting)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(aborting);
        assert!((&peer).read(&mut [0]).is_err());
        for (node, reporter) in reporters(data_path) {
            let wanted = [
                (OPENED, topology.dialled() as f64),
                (CLOSED, topology.dialled() as f64),
                (RECEIVED, f64::from(round) * REQUEST as f64),
                (SENT, f64::from(round) * RESPONSE as f64),
            ];
            eventually_equal(mesh.proxy(node), reporter, &wanted, "after a reset");
        }
    }
    assert_all_running(&mut mesh);
}

/// The metrics while a connection is open.
#[test]
fn an_open_connection_is_counted_as_open() {
    let topology = Topology::new(DataPath::Direct).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let _running = topology.serve(Kind::Http, PORT).unwrap();
    let to = topology.server().at(Family::V4, PORT);
    topology.get(to, "first").unwrap();
    let sent = send_request(&topology, topology.client(), to).unwrap();
    assert!(sent.direct);
    let (opened, closed) = (topology.dialled() as f64, topology.dialled() as f64 - 1.0);
    let proxy = mesh.proxy("a");
    let wanted = [(OPENED, opened), (CLOSED, closed)];
    eventually_equal(proxy, "source", &wanted, "while it is open");
    drop(sent);
    let wanted = [(OPENED, opened), (CLOSED, opened)];
    eventually_equal(proxy, "source", &wanted, "after it was closed");
}

fn connect_from(own: SocketAddr, to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&own.into())?;
    socket.connect(&to.into())?;
    Ok(socket)
}

on_paths!(reused_ports_are_recorded_as_separate_connections: direct, joined);
/// After a reset the ports are free at once, so the next connection can use them.
fn reused_ports_are_recorded_as_separate_connections(data_path: DataPath) {
    const ROUNDS: u32 = 200;
    let topology = Topology::new(data_path).unwrap();
    let mut mesh = topology.mesh().start().unwrap();
    let _echo = topology.serve(Kind::Echo, PORT).unwrap();
    let client = topology.client();
    for (round, family) in (1u32..).zip(Family::BOTH) {
        let to = topology.server().at(family, PORT);
        drop(topology.dial(client, to).unwrap());
        for _ in 0..ROUNDS {
            // A process that another test has just forked may hold a copy of the socket for a
            // moment.
            let socket = eventually("the ports are free again", || {
                match client.enter(|| connect_from(client.at(family, 4444), to)) {
                    Err(error) if error.kind() == ErrorKind::AddrNotAvailable => None,
                    outcome => Some(outcome.unwrap()),
                }
            });
            let mut end = Stream::new(socket.into(), data_path.io_mode()).unwrap();
            assert!(bypasses_the_proxy(client, &end).unwrap(), "{to}");
            end.write_all(b"round").unwrap();
            end.read_exact(&mut [0; 5]).unwrap();
            SockRef::from(&end)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
        let all = topology.dialled() as f64 + f64::from(round * ROUNDS);
        let bytes = f64::from(5 * round * ROUNDS);
        for reporter in ["source", "destination"] {
            let wanted = [
                (OPENED, all),
                (CLOSED, all),
                (RECEIVED, bytes),
                (SENT, bytes),
            ];
            eventually_equal(mesh.proxy("a"), reporter, &wanted, "with the same ports");
        }
    }
    assert_all_running(&mut mesh);
}
