use super::*;
use mesh::{Service, Workload};

fn workload(name: &str, namespace: &str) -> Workload {
    Workload::new(
        &format!("c//v1/Pod/{namespace}/{name}"),
        name,
        namespace,
        "sa",
    )
    .unwrap()
}

fn service() -> Service {
    Service {
        name: "b".into(),
        namespace: "shop".into(),
        hostname: "b.shop.svc.cluster.local".into(),
        ..Service::default()
    }
}

const LABELS: &str = concat!(
    r#"reporter="source",source_workload="web",source_canonical_service="web-app","#,
    r#"source_canonical_revision="v1",source_workload_namespace="default","#,
    r#"source_principal="spiffe://cluster.local/ns/default/sa/sa",source_app="web-app","#,
    r#"source_version="v1",source_cluster="cluster1","#,
    r#"destination_service="b.shop.svc.cluster.local",destination_service_name="b","#,
    r#"destination_service_namespace="shop",destination_workload="unknown","#,
    r#"destination_canonical_service="unknown",destination_canonical_revision="unknown","#,
    r#"destination_workload_namespace="shop","#,
    r#"destination_principal="spiffe://cluster.local/ns/shop/sa/sa",destination_app="unknown","#,
    r#"destination_version="unknown",destination_cluster="unknown",request_protocol="tcp","#,
    r#"response_flags="FLAG",connection_security_policy="mutual_tls""#,
);

fn key() -> SeriesKey {
    let mut source = workload("web-1", "default");
    source.workload_name = "web".into();
    source.canonical_name = "web-app".into();
    source.canonical_revision = "v1".into();
    source.cluster_id = "cluster1".into();
    SeriesKey {
        reporter: Reporter::Source,
        source_principal: Some(source.identity.clone()),
        source: Some(Arc::new(source)),
        destination: Some(Arc::new(workload("b-1", "shop"))),
        service: Some(Arc::new(service())),
        destination_principal: None,
        security: SecurityPolicy::MutualTls,
    }
}

#[test]
fn traffic_metrics_have_the_names_and_labels_that_dashboards_expect() {
    let telemetry = Telemetry::new(Counter::default());
    let series = telemetry.series(&key());
    (0..3).for_each(|_| series.opened.inc());
    series.closed.inc();
    series.failed(ResponseFlag::Deny);
    series.failed(ResponseFlag::None);
    series.sent_bytes.add(1000);
    series.received_bytes.add(20);
    let (fine, denied) = (LABELS.replace("FLAG", "-"), LABELS.replace("FLAG", "DENY"));
    let expected = format!(
        "# HELP istio_tcp_connections_opened TCP connections that were opened.\n\
         # TYPE istio_tcp_connections_opened counter\n\
         istio_tcp_connections_opened_total{{{fine}}} 3\n\
         # HELP istio_tcp_connections_closed TCP connections that ended, with or without an error.\n\
         # TYPE istio_tcp_connections_closed counter\n\
         istio_tcp_connections_closed_total{{{fine}}} 2\n\
         istio_tcp_connections_closed_total{{{denied}}} 1\n\
         # HELP istio_tcp_connections_failed TCP connections that were refused or ended with an error.\n\
         # TYPE istio_tcp_connections_failed counter\n\
         istio_tcp_connections_failed_total{{{fine}}} 1\n\
         istio_tcp_connections_failed_total{{{denied}}} 1\n\
         # HELP istio_tcp_received_bytes Bytes from the client to the server.\n\
         # TYPE istio_tcp_received_bytes counter\n\
         istio_tcp_received_bytes_total{{{fine}}} 20\n\
         # HELP istio_tcp_sent_bytes Bytes from the server to the client.\n\
         # TYPE istio_tcp_sent_bytes counter\n\
         istio_tcp_sent_bytes_total{{{fine}}} 1000\n"
    );
    let text = telemetry.encode();
    assert!(
        text.contains(&expected),
        "got:\n{text}\nexpected:\n{expected}"
    );
}

#[test]
fn metrics_without_traffic() {
    let telemetry = Telemetry::new(Counter::default());
    telemetry.pod_added();
    telemetry.pod_added();
    telemetry.pod_removed();
    let expected = format!(
        "# HELP istio_active_proxy_count_total Pods that are enrolled on this node.\n\
         # TYPE istio_active_proxy_count_total gauge\n\
         istio_active_proxy_count_total 1\n\
         # HELP istio_pending_proxy_count_total Pods that could not be enrolled yet; enrollment is retried.\n\
         # TYPE istio_pending_proxy_count_total gauge\n\
         istio_pending_proxy_count_total 0\n\
         # HELP istio_proxies_started Pods enrolled since the start of the process.\n\
         # TYPE istio_proxies_started counter\n\
         istio_proxies_started_total 2\n\
         # HELP istio_proxies_stopped Pods removed since the start of the process.\n\
         # TYPE istio_proxies_stopped counter\n\
         istio_proxies_stopped_total 1\n\
         # HELP ztunnel_acceleration Whether fast-path connections between pods of this node are joined by a sockmap (1) or not (0).\n\
         # TYPE ztunnel_acceleration gauge\n\
         ztunnel_acceleration 0\n\
         # HELP ztunnel_capture_lost Pods, or the node itself, whose capture is incomplete and cannot be restored.\n\
         # TYPE ztunnel_capture_lost gauge\n\
         ztunnel_capture_lost 0\n\
         # HELP istio_build Component and version of this process.\n\
         # TYPE istio_build gauge\n\
         istio_build{{component=\"ztunnel\",tag=\"{}\"}} 1\n\
         # HELP ztunnel_log_lines_dropped Log lines that were dropped because the log's reader was too slow.\n\
         # TYPE ztunnel_log_lines_dropped counter\n\
         ztunnel_log_lines_dropped_total 0\n\
         # EOF\n",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(telemetry.encode(), expected);
}

#[test]
fn missing_values_are_written_as_unknown() {
    let telemetry = Telemetry::new(Counter::default());
    let key = SeriesKey::unknown(Reporter::Destination, SecurityPolicy::Unknown);
    telemetry.series(&key).opened.inc();
    let text = telemetry.encode();
    let line = text
        .lines()
        .find(|line| line.starts_with("istio_tcp_connections_opened_total"));
    let labels = line.unwrap().split(['{', '}']).nth(1).unwrap();
    for pair in labels.split(',') {
        let (name, value) = pair.split_once('=').unwrap();
        let expected = match name {
            "reporter" => "\"destination\"",
            "request_protocol" => "\"tcp\"",
            "response_flags" => "\"-\"",
            _ => "\"unknown\"",
        };
        assert_eq!(value, expected, "{name}");
    }
    assert_eq!(labels.split(',').count(), 23);
}

#[test]
fn a_label_value_is_bounded_and_cannot_break_the_text() {
    let telemetry = Telemetry::new(Counter::default());
    let mut source = workload("a", "default");
    source.workload_name = "quo\"te\nline".into();
    source.canonical_name = "é".repeat(1000).as_str().into();
    let unknown = SeriesKey::unknown(Reporter::Source, SecurityPolicy::Unknown);
    let key = SeriesKey {
        source: Some(Arc::new(source)),
        ..unknown
    };
    telemetry.series(&key).opened.inc();
    let text = telemetry.encode();
    assert!(
        text.contains(r#"source_workload="quo\"te\nline","#),
        "{text}"
    );
    assert!(
        text.contains(&format!("source_app=\"{}\",", "é".repeat(256))),
        "{text}"
    );
}

#[test]
fn threads_count_into_the_same_series() {
    let telemetry = Telemetry::new(Counter::default());
    let key = key();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                (0..1000).for_each(|_| telemetry.series(&key).sent_bytes.add(2));
            });
        }
    });
    assert_eq!(telemetry.series(&key).sent_bytes.get(), 8000);
}

#[test]
fn other_crates_register_metrics() {
    let telemetry = Telemetry::new(Counter::default());
    let counter: Counter = Counter::default();
    telemetry.register("ztunnel_example", "Example", counter.clone());
    counter.inc();
    assert!(telemetry.encode().contains("\nztunnel_example_total 1\n"));
}

#[test]
fn the_self_test_is_shown_by_case() {
    let telemetry = Telemetry::new(Counter::default());
    let metrics = telemetry.acceleration();
    metrics.show([("peek", CaseResult::Failed), ("reset", CaseResult::Passed)]);
    metrics.show([("peek", CaseResult::Passed)]);
    metrics.effective.set(1);
    let text = telemetry.encode();
    for line in [
        "ztunnel_acceleration 1\n",
        "ztunnel_acceleration_self_test{case=\"peek\",result=\"passed\"} 1\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert!(!text.contains("failed\"} 1"), "{text}");
    assert!(!text.contains("case=\"reset\""), "{text}");
}

#[test]
fn ends_of_the_control_planes_connection_are_counted_by_reason() {
    let telemetry = Telemetry::new(Counter::default());
    telemetry.xds().terminated(XdsTermination::Reconnect);
    telemetry
        .xds()
        .clone()
        .terminated(XdsTermination::Reconnect);
    telemetry.xds().terminated(XdsTermination::ConnectionError);
    let text = telemetry.encode();
    for line in [
        "istio_xds_connection_terminations_total{reason=\"Reconnect\"} 2\n",
        "istio_xds_connection_terminations_total{reason=\"ConnectionError\"} 1\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
}
