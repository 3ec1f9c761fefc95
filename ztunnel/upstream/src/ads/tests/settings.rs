//! Settings of the client.

use prost_types::value::Kind;

use super::*;

#[test]
fn the_description_of_the_node_has_the_fields_that_istiod_reads() {
    let mut node = config("https://istiod:15012").node;
    node.metadata.insert(
        "LABELS".to_owned(),
        serde_json::json!({"app": ["z", 1, true, null]}),
    );
    node.metadata
        .insert("NODE_NAME".to_owned(), "from-the-environment".into());
    let message = node.message();
    assert_eq!(
        message.id,
        "ztunnel~10.0.0.9~ztunnel-x.istio-system~istio-system.svc.cluster.local"
    );
    let fields = message.metadata.unwrap().fields;
    let text = |key: &str| match &fields[key].kind {
        Some(Kind::StringValue(text)) => text.clone(),
        other => panic!("{other:?}"),
    };
    for (key, value) in [
        ("NAME", "ztunnel-x"),
        ("NAMESPACE", "istio-system"),
        ("INSTANCE_IPS", "10.0.0.9"),
        ("CLUSTER_ID", "c"),
        ("NETWORK", "net"),
        ("ISTIO_VERSION", "v1.2.3"),
        ("NODE_NAME", "from-the-environment"),
    ] {
        assert_eq!(text(key), value, "{key}");
    }
    let Some(Kind::StructValue(labels)) = &fields["LABELS"].kind else {
        panic!("{:?}", fields["LABELS"])
    };
    let Some(Kind::ListValue(list)) = &labels.fields["app"].kind else {
        panic!("{labels:?}")
    };
    assert_eq!(list.values.len(), 4);
    assert_eq!(list.values[1].kind, Some(Kind::NumberValue(1.0)));
}

#[test]
fn invalid_settings_are_refused() {
    let refused = |change: &dyn Fn(&mut Config)| {
        let mut config = config("https://istiod:15012");
        change(&mut config);
        let client = Client::new(config, XdsMetrics::default());
        client
            .expect_err("the settings must be refused")
            .to_string()
    };
    for address in [
        "istiod:15012",
        "ftp://istiod:15012",
        "",
        "https://",
        "not a url",
    ] {
        let error = refused(&|config| config.address = address.to_owned());
        assert!(error.starts_with("the control plane's address"), "{error}");
    }
    let error = refused(&|config| config.alt_hostname = Some("not a name".to_owned()));
    assert!(error.contains("\"not a name\""), "{error}");
    for (name, value) in [("x y", "z"), ("x-bin", "z"), ("x", "secret\n")] {
        let error = refused(&|config| config.headers = vec![(name.to_owned(), value.to_owned())]);
        assert!(error.contains(&format!("{name:?}")), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn debug_output_does_not_show_secrets() {
    let mut config = config("https://istiod:15012");
    config.headers = vec![("authorization".to_owned(), "secret".to_owned())];
    assert!(!format!("{config:?}").contains("secret"));
    let (client, _events) = Client::new(config, XdsMetrics::default()).unwrap();
    assert!(!format!("{client:?}").contains("secret"));
}

#[test]
fn the_client_is_send() {
    fn assert_send<T: Send>(_: &T) {}
    let (client, _events) =
        Client::new(config("https://istiod:15012"), XdsMetrics::default()).unwrap();
    assert_send(&client.run());
}
