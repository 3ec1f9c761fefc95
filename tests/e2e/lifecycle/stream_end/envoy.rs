//! The same with Envoy as the waypoint, in both configurations of Istio: it terminates the tunnel
//! and carries HTTP or TCP. `cargo xtask test` downloads the binary if possible.

use std::env;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use ztunnel_tests::net::{Family, Host, World};
use ztunnel_tests::process::Process;
use ztunnel_tests::proxy::{Mesh, identity};

use super::{errors, mesh};
use crate::assertions::{self, HTTP};
use crate::peer::{Authority, dial};

/// The variable with the path of the binary.
const VARIABLE: &str = "ZTUNNEL_TEST_ENVOY";
const HTTP_SHAPE: u16 = 15008;
const TCP_SHAPE: u16 = 15009;
/// The number of connections for each size of answer.
const CONNECTIONS: usize = 100;
const SIZES: [usize; 2] = [1000, 64 << 10];

/// The path of Envoy's binary. If there is none, the tests print that they are skipped: a failure
/// would make Envoy a requirement, and ignored tests would not run in CI.
fn binary() -> Option<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE) {
        return Some(named.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .map(|directory| directory.join("envoy"))
        .find(|candidate| candidate.is_file());
    if found.is_none() {
        // Not with a macro, because libtest hides what a passing test prints.
        let message = format!(
            "SKIPPED: the tests with a real Envoy, because there is no `envoy` in PATH and {VARIABLE} is not set\n"
        );
        io::stderr().write_all(message.as_bytes()).unwrap();
    }
    found
}

/// Starts Envoy on a host: it terminates tunnels on two ports and connects to `server`.
fn start(binary: &Path, directory: &Path, waypoint: &Host, server: SocketAddr) -> Process {
    let authority = Authority::of_mesh(directory);
    let certificate = authority.leaf_pem(&[&identity(waypoint)]);
    for (name, text) in ["envoy-cert.pem", "envoy-key.pem"].iter().zip(certificate) {
        fs::write(directory.join(name), text).unwrap();
    }
    let config = directory.join("envoy.yaml");
    fs::write(&config, configuration(directory, server)).unwrap();
    let log = fs::File::create(directory.join("envoy.log")).unwrap();
    let mut command = Command::new(binary);
    command
        .arg("--config-path")
        .arg(&config)
        .args(["--concurrency", "1", "--use-dynamic-base-id"])
        .args(["--log-level", "warning"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let mut envoy = Process::start(waypoint, &mut command).unwrap();
    assertions::eventually("Envoy listens", || {
        assert!(
            envoy.alive(),
            "{}",
            fs::read_to_string(directory.join("envoy.log")).unwrap()
        );
        let ports = [HTTP_SHAPE, TCP_SHAPE].into_iter();
        ports
            .map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))
            .all(|at| waypoint.enter(|| TcpStream::connect(at)).is_ok())
    });
    envoy
}

const TYPES: &str = "type.googleapis.com/envoy.extensions";

fn configuration(directory: &Path, server: SocketAddr) -> String {
    let listeners = [("http", HTTP_SHAPE), ("tcp", TCP_SHAPE)]
        .map(|(shape, port)| terminating(directory, shape, port))
        .concat();
    let connection_manager =
        format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager");
    format!(
        r#"
bootstrap_extensions:
- name: envoy.bootstrap.internal_listener
  typed_config: {{ "@type": "{TYPES}.bootstrap.internal_listener.v3.InternalListener" }}
static_resources:
  listeners:
{listeners}
  - name: http
    internal_listener: {{}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": "{connection_manager}"
          stat_prefix: inside
          route_config:
            virtual_hosts:
            - {{ name: all, domains: ["*"], routes: [{{ match: {{ prefix: "/" }}, route: {{ cluster: server }} }}] }}
          http_filters: [{ROUTER}]
  - name: tcp
    internal_listener: {{}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": "{TYPES}.filters.network.tcp_proxy.v3.TcpProxy"
          stat_prefix: inside
          cluster: server
  clusters:
  - name: server
    load_assignment:
      cluster_name: server
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: "{}", port_value: {} }} }} }} }}] }}]
{}{}"#,
        server.ip(),
        server.port(),
        inner("http"),
        inner("tcp"),
    )
}

const ROUTER: &str = r#"{ name: router, typed_config: { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }"#;

/// A cluster that leads to an internal listener.
fn inner(shape: &str) -> String {
    format!(
        r#"
  - name: {shape}
    load_assignment:
      cluster_name: {shape}
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ envoy_internal_address: {{ server_listener_name: {shape} }} }} }} }}] }}]"#
    )
}

/// A listener that terminates tunnels and passes their content to an internal listener.
fn terminating(directory: &Path, shape: &str, port: u16) -> String {
    let file = |name: &str| directory.join(name).display().to_string();
    let (certificate, key) = (file("envoy-cert.pem"), file("envoy-key.pem"));
    let root = file("ca/root-cert.pem");
    format!(
        r#"
  - name: terminate-{shape}
    address: {{ socket_address: {{ address: "0.0.0.0", port_value: {port} }} }}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": "{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"
          require_client_certificate: true
          common_tls_context:
            alpn_protocols: [h2]
            tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }}
            tls_certificates: [{{ certificate_chain: {{ filename: "{certificate}" }}, private_key: {{ filename: "{key}" }} }}]
            validation_context: {{ trusted_ca: {{ filename: "{root}" }} }}
      filters:
      - name: http
        typed_config:
          "@type": "{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"
          stat_prefix: terminate
          codec_type: HTTP2
          stream_idle_timeout: 0s
          http2_protocol_options: {{ allow_connect: true }}
          upgrade_configs: [{{ upgrade_type: CONNECT }}]
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ connect_matcher: {{}} }}
                route: {{ cluster: {shape}, timeout: 0s, upgrade_configs: [{{ upgrade_type: CONNECT, connect_config: {{}} }}] }}
          http_filters: [{ROUTER}]"#
    )
}

/// Answers each connection once with the number of bytes in the path, and closes first.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        thread::spawn(move || drop(answer(stream)));
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Ok(());
        }
        request.push(byte[0]);
    }
    let request = String::from_utf8_lossy(&request);
    let path = request.split(' ').nth(1).unwrap_or_default();
    let size: usize = path.rsplit('/').next().unwrap().parse().unwrap();
    let mut response =
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n")
            .into_bytes();
    response.resize(response.len() + size, b'x');
    stream.write_all(&response)
}

/// Sends one request on a new connection. Returns the length of the body.
fn get(client: &Host, to: SocketAddr, size: usize) -> io::Result<usize> {
    let mut stream = client.enter(|| dial(to))?;
    let request =
        format!("GET /bytes/{size} HTTP/1.1\r\nhost: web.example\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    let head = response.windows(4).position(|end| end == b"\r\n\r\n");
    head.map(|at| response.len() - at - 4)
        .ok_or_else(|| io::Error::other(String::from_utf8_lossy(&response).into_owned()))
}

/// Answers of a server that closes first arrive complete through Envoy in one configuration.
fn assert_complete_answers(port: u16) {
    let Some(binary) = binary() else { return };
    let world = World::two_nodes().unwrap();
    let (client, server, waypoint) = (world.pod("a", 0), world.pod("b", 0), world.pod("b", 1));
    let mut mesh = mesh(&world, port);
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), HTTP);
    let listener = server.enter(|| TcpListener::bind(any)).unwrap();
    thread::spawn(move || serve(&listener));
    let at = server.at(Family::V4, HTTP);
    let _envoy = start(&binary, world.directory(), waypoint, at);
    let to = Mesh::service(server).at(Family::V4, 80);
    for size in SIZES {
        for number in 0..CONNECTIONS {
            match get(client, to, size) {
                Ok(read) => assert_eq!(read, size, "connection {number}"),
                Err(error) => panic!("connection {number}, {size} bytes: {error}"),
            }
        }
    }
    let error_lines = errors(&mut mesh, "a");
    assert!(error_lines.is_empty(), "{error_lines:?}");
    assertions::assert_all_running(&mut mesh);
}

#[test]
fn answers_through_envoy_as_http_waypoint_are_complete() {
    assert_complete_answers(HTTP_SHAPE);
}

#[test]
fn answers_through_envoy_as_tcp_waypoint_are_complete() {
    assert_complete_answers(TCP_SHAPE);
}
