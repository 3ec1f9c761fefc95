use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};

use super::*;
use telemetry::{LogConfig, LogFormat, build_log};

struct Section(&'static str, Value);

impl Dump for Section {
    fn section(&self) -> &'static str {
        self.0
    }

    fn dump(&self) -> Value {
        self.1.clone()
    }
}

struct World {
    admin: SocketAddr,
    metrics: SocketAddr,
    health: SocketAddr,
    readiness: Readiness,
    quits: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    thread: std::thread::JoinHandle<()>,
}

fn config() -> Config {
    let any = "127.0.0.1:0".parse().unwrap();
    Config {
        admin: any,
        metrics: any,
        readiness: any,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn sources() -> Sources {
    Sources {
        telemetry: Telemetry::new(Counter::default()),
        log: None,
        readiness: Readiness::new(),
        dumps: Vec::new(),
        quit: Box::new(|| {}),
    }
}

/// The three servers on their own thread, so that tests can use blocking sockets.
fn world(log: Option<LogHandle>) -> World {
    let (stop, shutdown) = watch::channel(false);
    let (readiness, quits) = (Readiness::new(), Arc::new(AtomicUsize::new(0)));
    let count = quits.clone();
    let sources = Sources {
        log,
        readiness: readiness.clone(),
        dumps: vec![
            Arc::new(Section("workloads", json!([{ "name": "a" }]))),
            Arc::new(Section("certificates", json!([]))),
        ],
        quit: Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }),
        ..sources()
    };
    let (started, addresses) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        runtime().block_on(async {
            let servers = start(&config(), sources, &shutdown).unwrap();
            started
                .send((servers.admin, servers.metrics, servers.readiness))
                .unwrap();
            servers.finished().await;
        });
    });
    let (admin, metrics, health) = addresses.recv().unwrap();
    World {
        admin,
        metrics,
        health,
        readiness,
        quits,
        stop,
        thread,
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
}

/// Sends a request and returns the status, the head and the body of the response.
fn request(address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let mut stream = connect(address);
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

#[test]
fn the_index_and_an_unknown_path_list_the_pages() {
    let world = world(None);
    for (path, status) in [("/", 200), ("/debug/pprof", 404)] {
        let (got, _, body) = request(world.admin, "GET", path);
        assert_eq!(got, status);
        for page in [
            "/config_dump",
            "/logging",
            "/debug/pprof/profile",
            "/debug/pprof/heap",
            "/quitquitquit",
        ] {
            assert!(body.contains(page), "{path}: {body}");
        }
    }
    let (status, _, body) = request(world.health, "GET", "/metrics");
    assert!(status == 404 && body.contains("/healthz/ready"), "{body}");
}

#[test]
fn profiles_are_refused_with_a_reason_and_an_alternative() {
    let world = world(None);
    for (path, reason) in [
        ("/debug/pprof/profile?seconds=30", "perf record"),
        ("/debug/pprof/heap", "jemalloc is not built in"),
    ] {
        let (status, head, body) = request(world.admin, "GET", path);
        assert_eq!(status, 501, "{path}");
        assert!(head.contains("content-type: text/plain"), "{head}");
        assert!(body.contains(reason), "{path}: {body}");
    }
}

#[test]
fn the_dump_contains_all_sections() {
    let world = world(None);
    let (status, head, body) = request(world.admin, "GET", "/config_dump");
    assert!(
        status == 200 && head.contains("content-type: application/json"),
        "{head}"
    );
    let expected = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "workloads": [{ "name": "a" }],
        "certificates": [],
    });
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
}

#[test]
fn metrics_have_both_paths_and_the_content_type_of_open_metrics() {
    let world = world(None);
    for path in ["/metrics", "/stats/prometheus"] {
        let (status, head, body) = request(world.metrics, "GET", path);
        assert_eq!(status, 200);
        assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"));
        assert!(body.contains("istio_build{component=\"ztunnel\"") && body.ends_with("# EOF\n"));
    }
}

#[test]
fn readiness_names_unfinished_tasks() {
    let world = world(None);
    let task = world.readiness.wait_for("pods");
    let (status, _, body) = request(world.health, "GET", "/healthz/ready");
    assert_eq!(
        (status, body.as_str()),
        (503, "not ready, waiting for: pods\n")
    );
    task.done();
    let (status, _, body) = request(world.health, "GET", "/healthz/ready");
    assert_eq!((status, body.as_str()), (200, "ready\n"));
}

#[test]
fn only_a_post_stops_the_proxy() {
    let world = world(None);
    let (status, head, _) = request(world.admin, "GET", "/quitquitquit");
    assert!(status == 405 && head.contains("allow: post"), "{head}");
    assert_eq!(world.quits.load(Ordering::Relaxed), 0);
    assert_eq!(request(world.admin, "POST", "/quitquitquit").0, 200);
    assert_eq!(world.quits.load(Ordering::Relaxed), 1);
}

#[test]
fn a_page_of_another_site_is_refused() {
    let world = world(None);
    for header in [
        "host: evil.example",
        "host: localhost\r\norigin: http://evil.example",
    ] {
        let mut stream = connect(world.admin);
        write!(
            stream,
            "POST /quitquitquit HTTP/1.1\r\n{header}\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 403 "), "{text}");
    }
    assert_eq!(world.quits.load(Ordering::Relaxed), 0);
}

#[test]
fn a_head_request_gets_no_body() {
    let world = world(None);
    let (status, head, body) = request(world.metrics, "HEAD", "/metrics");
    assert!(
        status == 200 && body.is_empty() && head.contains("content-length"),
        "{head}"
    );
}

#[test]
fn a_request_with_a_large_head_is_refused() {
    let world = world(None);
    let mut stream = connect(world.admin);
    let giant = format!(
        "GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "y".repeat(64 << 10)
    );
    // The server may close before everything was sent.
    let _sent = stream.write_all(giant.as_bytes()).is_ok();
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer).is_err();
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    assert_eq!(request(world.admin, "GET", "/").0, 200);
}

#[test]
fn the_server_survives_invalid_requests() {
    let world = world(None);
    let mut stream = connect(world.admin);
    stream
        .write_all(b"\x16\x03\x01\x00\xff\x00\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer).is_err();
    assert_eq!(request(world.admin, "GET", "/").0, 200);
}

#[test]
fn the_error_for_a_port_in_use_names_the_setting() {
    let world = world(None);
    let taken = Config {
        metrics: world.metrics,
        ..config()
    };
    let runtime = runtime();
    let _inside = runtime.enter();
    let error = start(&taken, sources(), &world.stop.subscribe())
        .unwrap_err()
        .to_string();
    let expected = format!(
        "cannot listen on {} (metrics.address): another process",
        taken.metrics
    );
    assert!(error.starts_with(&expected), "{error}");
}

#[test]
fn servers_stop_soon_after_shutdown_even_with_idle_connections() {
    let world = world(None);
    let idle = connect(world.admin);
    assert_eq!(request(world.admin, "GET", "/").0, 200);
    let start = Instant::now();
    world.stop.send(true).unwrap();
    world.thread.join().unwrap();
    // Much less than the time limit for a request's head.
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(TcpStream::connect(world.admin).is_err());
    drop(idle);
}

#[test]
fn a_connection_beyond_the_limit_closes_the_oldest() {
    let world = world(None);
    let mut held: Vec<_> = (0..64).map(|_| connect(world.admin)).collect();
    assert_eq!(request(world.admin, "GET", "/").0, 200);
    let mut is_open = |at: usize| {
        let connection: &mut TcpStream = &mut held[at];
        let short = Some(Duration::from_millis(200));
        connection.set_read_timeout(short).unwrap();
        // A closed connection reads as its end or as a reset.
        let read = connection.read(&mut [0; 1]);
        matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
    };
    assert!(!is_open(0), "the oldest one is still open");
    assert!(is_open(1) && is_open(63), "more than one was closed");
}

/// Runs a test with servers whose log has the filter `info`.
fn with_log(test: impl FnOnce(World)) {
    let config = LogConfig {
        filter: "info".parse().unwrap(),
        format: LogFormat::Text,
    };
    let (_subscriber, handle, _guard) = build_log(&config, std::io::sink()).unwrap();
    test(world(Some(handle)));
}

#[test]
fn an_invalid_change_of_the_log_filter_is_refused() {
    with_log(|world| {
        for (query, expected) in [
            ("level=loud", "\"loud\" is not a level: expected off, error"),
            ("level=%zz", "\"%zz\" is not a level: expected off, error"),
            ("level=%ff", "the level is not percent-encoded UTF-8"),
            (
                "what=1",
                "unknown parameter \"what\": expected level or reset",
            ),
        ] {
            let (status, _, body) = request(world.admin, "POST", &format!("/logging?{query}"));
            assert_eq!(status, 400, "{query}: {body}");
            assert!(body.starts_with(expected), "{query}: {body}");
        }
        let (_, _, body) = request(world.admin, "GET", "/logging");
        assert_eq!(body, "current log level is info\n");
    });
}

#[test]
fn the_log_filter_is_shown_and_changed() {
    with_log(|world| {
        for (method, path, status, expected) in [
            ("GET", "/logging", 200, "current log level is info\n"),
            (
                "POST",
                "/logging?level=debug",
                200,
                "current log level is debug\n",
            ),
            (
                "POST",
                "/logging?level=ztunnel::path=trace%2Caccess=off",
                200,
                "current log level is debug,access=off,ztunnel::path=trace\n",
            ),
            ("GET", "/logging?level=info", 405, "GET only shows"),
            (
                "DELETE",
                "/logging",
                405,
                "/logging allows GET, POST, PUT, not DELETE",
            ),
            (
                "POST",
                "/logging",
                200,
                "current log level is debug,access=off,ztunnel::path=trace\n",
            ),
            (
                "POST",
                "/logging?level=",
                200,
                "current log level is debug,access=off,ztunnel::path=trace\n",
            ),
            (
                "POST",
                "/logging?level=info&reset",
                200,
                "current log level is info\n",
            ),
            ("POST", "/logging?reset", 200, "current log level is info\n"),
        ] {
            let (got, _, body) = request(world.admin, method, path);
            assert_eq!(got, status, "{method} {path}: {body}");
            assert!(body.starts_with(expected), "{method} {path}: {body}");
        }
    });
}
