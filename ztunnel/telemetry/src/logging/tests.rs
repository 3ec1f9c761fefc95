use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::*;
use crate::{AccessLogEntry, Reporter};
use mesh::{Service, Workload};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Sink {
    /// The written text, after the writer has ended: the guard waits for a limited time.
    fn written(self) -> String {
        let until = Instant::now() + Duration::from_secs(30);
        while Arc::strong_count(&self.0) > 1 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        let bytes = self.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }
}

/// Runs `body` with a log of its own and returns the written text.
fn logged(filter: &str, format: LogFormat, body: impl FnOnce(&LogHandle)) -> String {
    let sink = Sink::default();
    let config = LogConfig {
        filter: filter.parse().unwrap(),
        format,
    };
    let (subscriber, handle, guard) = build_log(&config, sink.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, || body(&handle));
    drop(guard);
    sink.written()
}

/// A line of text without its time.
fn without_time(line: &str) -> &str {
    line.split_once('\t').unwrap().1
}

fn connection(finish: impl FnOnce(AccessLogEntry<'_>)) {
    let source = Workload::new("c//v1/Pod/default/a", "a", "default", "web").unwrap();
    let destination = Workload::new("c//v1/Pod/shop/b", "b", "shop", "db").unwrap();
    let service = Service {
        name: "b".into(),
        namespace: "shop".into(),
        hostname: "b.shop.svc.cluster.local".into(),
        ..Service::default()
    };
    finish(AccessLogEntry {
        reporter: Reporter::Source,
        source: "10.0.0.1:4000".parse().unwrap(),
        source_workload: Some(&source),
        source_identity: Some(&source.identity),
        destination: "[fd00::2]:15008".parse().unwrap(),
        hbone: Some(&"[fd00::2]:80"),
        service: Some(&service),
        destination_workload: Some(&destination),
        destination_identity: Some(&destination.identity),
        bytes_sent: 12,
        bytes_received: 3456,
        duration: Duration::from_micros(7_900),
        reset_by: None,
        error: None,
    });
}

const LINE: &str = concat!(
    "access\tconnection complete\tsrc.addr=10.0.0.1:4000 src.workload=\"a\" ",
    "src.namespace=\"default\" src.identity=\"spiffe://cluster.local/ns/default/sa/web\" ",
    "dst.addr=[fd00::2]:15008 dst.hbone_addr=[fd00::2]:80 ",
    "dst.service=\"b.shop.svc.cluster.local\" dst.workload=\"b\" dst.namespace=\"shop\" ",
    "dst.identity=\"spiffe://cluster.local/ns/shop/sa/db\" direction=\"outbound\" ",
    "bytes_sent=12 bytes_recv=3456 duration=\"7ms\"",
);

#[test]
fn a_finished_connection_is_one_line_of_text() {
    let log = logged("info", LogFormat::Text, |_| connection(|entry| entry.log()));
    assert_eq!(without_time(&log), format!("info\t{LINE}\n"));
    let time = log.split('\t').next().unwrap();
    assert_eq!(time.len(), "2026-08-01T00:00:00.000000Z".len(), "{time}");
}

#[test]
fn a_failed_connection_is_an_error_that_says_why() {
    let log = logged("info", LogFormat::Text, |_| {
        connection(|entry| {
            AccessLogEntry {
                error: Some(&"denied by \"a/b\"\nx"),
                ..entry
            }
            .log()
        });
    });
    assert_eq!(
        without_time(&log),
        format!("error\t{LINE} error=\"denied by \\\"a/b\\\"\\nx\"\n")
    );
}

#[test]
fn a_connection_that_an_application_has_reset_is_no_error() {
    let log = logged("info", LogFormat::Text, |_| {
        connection(|entry| {
            AccessLogEntry {
                reset_by: Some(&"client"),
                ..entry
            }
            .log()
        });
    });
    let expected = format!("info\t{LINE} reset_by=\"client\"\n");
    assert_eq!(without_time(&log), expected);
}

#[test]
fn a_finished_connection_is_one_json_object() {
    let log = logged("info", LogFormat::Json, |_| {
        connection(|entry| {
            AccessLogEntry {
                error: Some(&"a \"b\""),
                source_identity: None,
                ..entry
            }
            .log();
        });
    });
    let Value::Object(mut fields) = serde_json::from_str::<Value>(&log).unwrap() else {
        panic!("{log}")
    };
    assert!(fields.remove("time").is_some());
    let expected = serde_json::json!({
        "level": "error",
        "scope": "access",
        "message": "connection complete",
        "src.addr": "10.0.0.1:4000",
        "src.workload": "a",
        "src.namespace": "default",
        "dst.addr": "[fd00::2]:15008",
        "dst.hbone_addr": "[fd00::2]:80",
        "dst.service": "b.shop.svc.cluster.local",
        "dst.workload": "b",
        "dst.namespace": "shop",
        "dst.identity": "spiffe://cluster.local/ns/shop/sa/db",
        "direction": "outbound",
        "bytes_sent": 12,
        "bytes_recv": 3456,
        "duration": "7ms",
        "error": "a \"b\"",
    });
    assert_eq!(Value::Object(fields), expected);
}

#[test]
fn an_access_log_that_is_off_formats_nothing() {
    struct Loud;
    impl std::fmt::Display for Loud {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("formatted")
        }
    }
    let log = logged("info,access=off", LogFormat::Text, |_| {
        assert!(!AccessLogEntry::enabled());
        connection(|entry| entry.log());
        connection(|entry| {
            AccessLogEntry {
                error: Some(&Loud),
                ..entry
            }
            .log()
        });
    });
    assert_eq!(log, "");
}

#[test]
fn the_filter_can_be_changed_at_runtime() {
    let log = logged("info", LogFormat::Text, |handle| {
        tracing::debug!("one");
        handle
            .set(handle.filter().with("ztunnel=debug").unwrap())
            .unwrap();
        assert_eq!(handle.filter().to_string(), "info,ztunnel=debug");
        tracing::debug!("two");
        handle.set("off".parse().unwrap()).unwrap();
        tracing::error!("three");
        handle.reset().unwrap();
        tracing::info!("four");
        tracing::debug!("five");
    });
    let messages: Vec<_> = log
        .lines()
        .map(|line| line.rsplit('\t').next().unwrap())
        .collect();
    assert_eq!(messages, ["two", "four"]);
}

#[test]
fn values_of_every_kind_are_written() {
    let write = || {
        tracing::info!(
            count = -1_i64, ok = true, ratio = 0.5, not = f64::NAN, debug = ?Some("x"),
            level = "mine", "a \"message\"\nof two lines"
        );
    };
    let text = logged("info", LogFormat::Text, |_| write());
    assert!(
        text.ends_with(
            "\ta \"message\"\\nof two lines\tcount=-1 ok=true ratio=0.5 not=\"NaN\" debug=Some(\"x\") level=\"mine\"\n"
        ),
        "{text}"
    );
    let json = logged("info", LogFormat::Json, |_| write());
    let value: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["message"], "a \"message\"\nof two lines");
    assert_eq!(
        (&value["ratio"], &value["not"]),
        (&0.5.into(), &"NaN".into())
    );
    assert_eq!(
        (&value["level"], &value["field.level"]),
        (&"info".into(), &"mine".into())
    );
}

#[test]
fn records_of_the_log_crate_keep_their_target_and_follow_the_filter() {
    let sink = Sink::default();
    let config = LogConfig {
        filter: "info,programs=debug".parse().unwrap(),
        ..Default::default()
    };
    let (subscriber, _handle, guard) = build_log(&config, sink.clone()).unwrap();
    // Installs the bridge as well, which try_init does in a real process.
    let inside = subscriber.set_default();
    log::debug!(target: "programs", "captured");
    log::debug!(target: "elsewhere", "not wanted");
    drop((inside, guard));
    let log = sink.written();
    assert_eq!(without_time(&log), "debug\tprograms\tcaptured\n");
}

#[test]
fn targets_of_our_crates_are_printed_below_ztunnel_and_work_as_filters() {
    let write = || {
        tracing::info!(target: "node::proxy::outbound", "one");
        tracing::debug!(target: "node::proxy::outbound", "two");
        tracing::info!(target: "h2::proto", "three");
    };
    let text = logged("info", LogFormat::Text, |_| write());
    let lines: Vec<_> = text.lines().map(without_time).collect();
    let printed = "ztunnel::node::proxy::outbound";
    assert_eq!(
        lines,
        [
            format!("info\t{printed}\tone"),
            "info\th2::proto\tthree".to_owned()
        ]
    );
    let json = logged(&format!("off,{printed}=debug"), LogFormat::Json, |_| {
        write()
    });
    let scopes: Vec<Value> = json
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["scope"].clone())
        .collect();
    assert_eq!(scopes, [printed, printed]);
}

#[test]
fn a_log_format_has_a_name() {
    assert_eq!("json".parse(), Ok(LogFormat::Json));
    assert_eq!("text".parse(), Ok(LogFormat::Text));
    assert!(
        "xml"
            .parse::<LogFormat>()
            .unwrap_err()
            .to_string()
            .contains("expected text or json")
    );
}
