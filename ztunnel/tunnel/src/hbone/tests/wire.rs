//! Header texts: parsing never panics, and encoding reproduces the parsed text.

use http::HeaderValue;
use proptest::prelude::*;

use mesh::Authority;

use super::super::forwarded;
use super::*;
use mesh::WorkloadType;

#[test]
fn valid_authorities_are_parsed() {
    for (text, expected) in [
        ("10.0.0.1:80", Authority::Address(address("10.0.0.1:80"))),
        ("[::1]:65535", Authority::Address(address("[::1]:65535"))),
        (
            "[::ffff:10.0.0.1]:80",
            Authority::Address(address("[::ffff:10.0.0.1]:80")),
        ),
        (
            "web.default.svc.cluster.local:8080",
            Authority::Host("web.default.svc.cluster.local".into(), 8080),
        ),
    ] {
        let parsed: Authority = text.parse().unwrap();
        assert_eq!(parsed, expected);
        assert_eq!(
            (parsed.to_string().as_str(), parsed.port()),
            (text, text.rsplit(':').next().unwrap().parse().unwrap())
        );
    }
}

#[test]
fn invalid_authorities_are_refused() {
    for text in [
        "",
        ":",
        ":80",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:+80",
        "10.0.0.1:080000",
        "::1:80",
        "[::1]",
        "[::1:80",
        "::1]:80",
        "[10.0.0.1]:80",
        "[fe80::1%1]:80",
        "10.0.0:80",
        "300.0.0.1:80",
        "a b:80",
        "user@a:80",
        "a..b:80",
        ".a:80",
        "a/b:80",
        "a:b:80",
    ] {
        assert!(text.parse::<Authority>().is_err(), "{text}");
    }
    assert!(
        format!("{}:80", "a.".repeat(200))
            .parse::<Authority>()
            .is_err()
    );
    let long = "x".repeat(100_000).parse::<Authority>().unwrap_err();
    assert_eq!(long.text.len(), 256);
}

#[test]
fn forwarded_is_decoded_in_all_common_forms() {
    for (text, expected) in [
        ("for=10.0.0.1", Some("10.0.0.1")),
        ("For=\"10.0.0.1:1234\"", Some("10.0.0.1")),
        ("for=\"[2001:db8::1]\"", Some("2001:db8::1")),
        ("for=\"[2001:db8::1]:1234\";host=web", Some("2001:db8::1")),
        ("for=2001:db8::1", Some("2001:db8::1")),
        ("proto=https; for=10.0.0.1, for=10.0.0.2", Some("10.0.0.1")),
        ("for=unknown", None),
        ("for=_hidden", None),
        ("for=", None),
        ("10.0.0.1", None),
        ("", None),
    ] {
        let value = HeaderValue::from_str(text).unwrap();
        assert_eq!(
            forwarded::decode(&value).client,
            expected.map(|ip| ip.parse().unwrap()),
            "{text}"
        );
    }
}

#[test]
fn forwarded_has_the_host_only_if_it_needs_no_quotes() {
    let encoded = |host: &str| {
        let value = forwarded::encode("10.0.0.1".parse().unwrap(), Some(host)).unwrap();
        value.to_str().unwrap().to_owned()
    };
    assert_eq!(
        encoded("web.default.svc"),
        "for=10.0.0.1;host=web.default.svc"
    );
    for odd in ["", "a b", "a;b", "a,b", "a\"b", "a\r\nb", "a:80"] {
        assert_eq!(encoded(odd), "for=10.0.0.1", "{odd:?}");
    }
    for (text, expected) in [
        ("for=10.0.0.1;host=web", Some("web")),
        ("for=\"10.0.0.1:1234\";Host=\"web:80\"", Some("web:80")),
        ("host=web", Some("web")),
        ("for=10.0.0.1;host=", None),
        ("for=10.0.0.1, host=web", None),
        ("for=10.0.0.1", None),
    ] {
        let value = HeaderValue::from_str(text).unwrap();
        assert_eq!(
            forwarded::decode(&value).host.as_deref(),
            expected,
            "{text}"
        );
    }
}

#[test]
fn traceparents_are_validated() {
    let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let parsed: TraceParent = good.parse().unwrap();
    assert_eq!(parsed.to_string(), good);
    assert_eq!(parsed.flags, 1);
    // A later version may have more fields.
    assert!(
        format!("01{}-more", &good[2..])
            .parse::<TraceParent>()
            .is_ok()
    );
    for bad in [
        "".to_owned(),
        good[..54].to_owned(),
        format!("{good}-more"),
        format!("ff{}", &good[2..]),
        good.to_uppercase(),
        good.replace('-', "_"),
        format!("00-{:032x}-b7ad6b7169203331-01", 0),
        format!("00-0af7651916cd43dd8448eb211c80319c-{:016x}-01", 0),
    ] {
        assert!(bad.parse::<TraceParent>().is_err(), "{bad}");
    }
}

#[test]
fn baggage_has_the_keys_of_istio() {
    let baggage = Baggage {
        cluster: Some("cluster1".into()),
        namespace: Some("default".into()),
        workload: Some((WorkloadType::Deployment, "web".into())),
        service: Some("web".into()),
        version: Some("v1".into()),
        region: Some("r1".into()),
        zone: Some("z1".into()),
    };
    let text = "k8s.cluster.name=cluster1,k8s.namespace.name=default,k8s.deployment.name=web,\
                service.name=web,service.version=v1,cloud.region=r1,cloud.availability_zone=z1";
    assert_eq!(baggage.encode().unwrap(), text);
    assert_eq!(Baggage::decode([&HeaderValue::from_static(text)]), baggage);
    assert_eq!(Baggage::default().encode(), None);
}

#[test]
fn baggage_is_bounded_and_skips_unusable_members() {
    let decode = |text: &str| Baggage::decode([&HeaderValue::from_str(text).unwrap()]);
    let odd = decode(
        ",,=,a=b, service.name = x%20y ;p=1,service.name=later,cloud.region=%0A,k8s.pod.name=p",
    );
    assert_eq!(odd.service.as_deref(), Some("x y"));
    assert_eq!(
        odd.region, None,
        "control characters have no place in a log"
    );
    assert_eq!(odd.workload, Some((WorkloadType::Pod, "p".into())));
    assert_eq!(
        decode(&format!("service.name={}", "x".repeat(300))).service,
        None
    );
    assert_eq!(
        decode(&format!("{}service.name=x", "a=b,".repeat(64))).service,
        None
    );
    assert_eq!(
        decode(&format!("{},service.name=x", "a".repeat(9000))).service,
        None
    );
    assert_eq!(decode("service.name=100%").service.as_deref(), Some("100%"));
}

fn name() -> impl Strategy<Value = Option<String>> {
    proptest::option::of("[ -~äé]{0,40}")
}

proptest! {
    #[test]
    fn any_text_is_parsed_without_a_panic(text in "\\PC{0,300}", bytes: Vec<u8>) {
        if let Ok(authority) = text.parse::<Authority>() {
            prop_assert_eq!(authority.to_string().parse::<Authority>().unwrap(), authority);
        }
        prop_assert!(text.parse::<TraceParent>().is_err() || text.len() >= 55);
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            drop((forwarded::decode(&value), Baggage::decode([&value]), TraceParent::decode(&value)));
        }
    }

    #[test]
    fn addresses_print_and_parse_back(ip: std::net::IpAddr, port in 1_u16..) {
        let authority = Authority::Address(SocketAddr::new(ip, port));
        prop_assert_eq!(authority.to_string().parse::<Authority>().unwrap(), authority.clone());
        let http = to_http(&authority).unwrap();
        prop_assert_eq!(http.as_str(), authority.to_string());
        prop_assert_eq!(forwarded::decode(&forwarded::encode(ip, None).unwrap()).client, Some(ip));
    }

    #[test]
    fn hosts_print_and_parse_back(host in "[a-z0-9_-]{1,20}(\\.[a-z0-9-]{0,19}[a-z]){0,4}", port in 1_u16..) {
        prop_assume!(host.bytes().any(|byte| byte.is_ascii_alphabetic()));
        let text = format!("{host}:{port}");
        let parsed = text.parse::<Authority>();
        if let Ok(authority) = parsed {
            prop_assert_eq!(authority.to_string(), text.as_str());
            let http = to_http(&authority).unwrap();
            prop_assert_eq!(http.as_str(), text);
        } else {
            // A last label of digits looks like a mistyped address.
            prop_assert!(host.rsplit('.').next().unwrap().bytes().all(|byte| byte.is_ascii_digit()));
        }
    }

    #[test]
    fn traceparents_print_and_parse_back(trace_id in 1_u128.., parent_id in 1_u64.., flags: u8) {
        let trace = TraceParent { trace_id, parent_id, flags };
        prop_assert_eq!(trace.to_string().parse::<TraceParent>(), Ok(trace));
        prop_assert_eq!(TraceParent::decode(&trace.encode().unwrap()), Some(trace));
    }

    #[test]
    fn baggage_encodes_and_decodes_back(
        cluster in name(), namespace in name(), workload in name(), service in name(),
        version in name(), region in name(), zone in name(),
    ) {
        let workload = workload.map(|name| (WorkloadType::Job, name));
        let baggage = Baggage { cluster, namespace, workload, service, version, region, zone };
        let decoded = baggage.encode().map(|value| Baggage::decode([&value])).unwrap_or_default();
        prop_assert_eq!(decoded, baggage);
    }
}
