//! What `istioctl ztunnel-config` reads, as tables: `istioctl/pkg/writer/ztunnel/configdump/api.go`
//! of istio/istio, with Go's names of the types. `?` marks what may be absent or null in one object,
//! but is in at least one.

use super::*;

type Fields = &'static [(&'static str, &'static str)];

const STRUCTS: &[(&str, Fields)] = &[
    (
        "ZtunnelDump",
        &[
            ("workloads", "[]Workload"),
            ("services", "[]Service"),
            ("policies", "[]Policy"),
            ("certificates", "[]Certs"),
            ("workloadState", "map[string]State"),
        ],
    ),
    (
        "Workload",
        &[
            ("uid", "string"),
            ("workloadIps", "[]string"),
            ("waypoint", "?Gateway"),
            ("networkGateway", "?Gateway"),
            ("protocol", "string"),
            ("name", "string"),
            ("namespace", "string"),
            ("serviceAccount", "string"),
            ("workloadName", "string"),
            ("workloadType", "string"),
            ("canonicalName", "string"),
            ("canonicalRevision", "string"),
            ("clusterId", "string"),
            ("trustDomain", "string"),
            ("locality", "Locality"),
            ("node", "string"),
            ("network", "string"),
            ("status", "string"),
            ("hostname", "string"),
            ("capacity", "uint32"),
            ("applicationTunnel", "?ApplicationTunnel"),
            ("authorizationPolicies", "[]string"),
        ],
    ),
    (
        "Locality",
        &[
            ("region", "string"),
            ("zone", "string"),
            ("subzone", "string"),
        ],
    ),
    (
        "ApplicationTunnel",
        &[("protocol", "string"), ("port", "?uint16")],
    ),
    ("Gateway", &[("destination", "string")]),
    (
        "Service",
        &[
            ("name", "string"),
            ("namespace", "string"),
            ("hostname", "string"),
            ("vips", "[]string"),
            ("ports", "map[string]uint16"),
            ("loadBalancer", "?LoadBalancer"),
            ("waypoint", "?Gateway"),
            ("endpoints", "map[string]Endpoint"),
            ("subjectAltNames", "[]string"),
            ("ipFamilies", "string"),
        ],
    ),
    (
        "LoadBalancer",
        &[
            ("mode", "string"),
            ("routingPreferences", "[]string"),
            ("healthPolicy", "string"),
        ],
    ),
    (
        "Endpoint",
        &[
            ("workloadUid", "string"),
            ("service", "string"),
            ("address", "string"),
            ("port", "map[uint16]uint16"),
        ],
    ),
    (
        "Policy",
        &[
            ("name", "string"),
            ("namespace", "string"),
            ("scope", "string"),
            ("action", "string"),
            ("rules", "[][][]Match"),
        ],
    ),
    (
        "Match",
        &[
            ("namespaces", "[]StringMatch"),
            ("notNamespaces", "[]StringMatch"),
            ("principals", "[]StringMatch"),
            ("notPrincipals", "[]StringMatch"),
            ("sourceIps", "[]string"),
            ("notSourceIps", "[]string"),
            ("destinationIps", "[]string"),
            ("notDestinationIps", "[]string"),
            ("destinationPorts", "[]uint16"),
            ("notDestinationPorts", "[]uint16"),
            ("serviceAccounts", "[]ServiceAccountMatch"),
            ("notServiceAccounts", "[]ServiceAccountMatch"),
        ],
    ),
    (
        "StringMatch",
        &[
            ("Exact", "?string"),
            ("Suffix", "?string"),
            ("Prefix", "?string"),
            ("Presence", "?any"),
        ],
    ),
    (
        "ServiceAccountMatch",
        &[("namespace", "string"), ("serviceAccount", "string")],
    ),
    (
        "Certs",
        &[
            ("identity", "string"),
            ("state", "string"),
            ("certChain", "[]Cert"),
            ("rootCerts", "[]Cert"),
        ],
    ),
    (
        "Cert",
        &[
            ("pem", "string"),
            ("serialNumber", "string"),
            ("validFrom", "string"),
            ("expirationTime", "string"),
        ],
    ),
    (
        "State",
        &[
            ("state", "string"),
            ("connections", "Connections"),
            ("info", "Info"),
        ],
    ),
    (
        "Connections",
        &[("inbound", "[]Connection"), ("outbound", "[]Connection")],
    ),
    (
        "Info",
        &[
            ("name", "string"),
            ("namespace", "string"),
            ("trustDomain", "string"),
            ("serviceAccount", "string"),
        ],
    ),
    (
        "Connection",
        &[
            ("src", "string"),
            ("originalDst", "string"),
            ("actualDst", "string"),
            ("protocol", "string"),
        ],
    ),
];

/// Which fields had a value, and which lists and maps an entry.
#[derive(Default)]
pub(super) struct Seen(BTreeSet<(&'static str, &'static str)>);

impl Seen {
    /// Every field of every struct was there and not empty: a table is worth nothing where there is
    /// no value to hold against it.
    pub(super) fn has_everything(&self) {
        let all = STRUCTS
            .iter()
            .flat_map(|(name, fields)| fields.iter().map(move |(key, _)| (*name, *key)));
        let missing: Vec<_> = all.filter(|field| !self.0.contains(field)).collect();
        assert!(missing.is_empty(), "never seen with a value: {missing:?}");
    }
}

/// Holds a value against a type.
#[track_caller]
pub(super) fn check(kind: &str, path: &str, value: &Value, seen: &mut Seen) {
    if let Some(element) = kind.strip_prefix("[]") {
        let list = value.as_array();
        for (at, value) in list
            .unwrap_or_else(|| panic!("{path}: no list: {value}"))
            .iter()
            .enumerate()
        {
            check(element, &format!("{path}[{at}]"), value, seen);
        }
        return;
    }
    if let Some((key, element)) = kind
        .strip_prefix("map[")
        .and_then(|rest| rest.split_once(']'))
    {
        let map = value.as_object();
        for (name, value) in map.unwrap_or_else(|| panic!("{path}: no map: {value}")) {
            assert!(
                key == "string" || name.parse::<u16>().is_ok(),
                "{path}: {name}"
            );
            check(element, &format!("{path}.{name}"), value, seen);
        }
        return;
    }
    let number = |most: u64| value.as_u64().is_some_and(|number| number <= most);
    let right = match kind {
        "any" => true,
        "string" => value.is_string(),
        "uint16" => number(u64::from(u16::MAX)),
        "uint32" => number(u64::from(u32::MAX)),
        _ => return check_struct(kind, path, value, seen),
    };
    assert!(right, "{path}: no {kind}: {value}");
}

#[track_caller]
fn check_struct(kind: &str, path: &str, value: &Value, seen: &mut Seen) {
    let (name, fields) = STRUCTS.iter().find(|(name, _)| *name == kind).unwrap();
    let object = value
        .as_object()
        .unwrap_or_else(|| panic!("{path}: no {kind}: {value}"));
    // Go takes a key in whatever case for a field.
    let names: BTreeMap<_, _> = fields
        .iter()
        .map(|(key, _)| (key.to_lowercase(), *key))
        .collect();
    for key in object.keys() {
        let field = names.get(&key.to_lowercase());
        assert!(
            field.is_none_or(|field| field == key),
            "{path}.{key}: taken for {field:?}"
        );
    }
    for (key, kind) in *fields {
        let value = object.get(*key).filter(|value| !value.is_null());
        let (optional, kind) = kind
            .strip_prefix('?')
            .map_or((false, *kind), |kind| (true, kind));
        let Some(value) = value else {
            assert!(optional, "{path}.{key} is missing");
            continue;
        };
        check(kind, &format!("{path}.{key}"), value, seen);
        let empty = match value {
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty() && kind != "any",
            Value::String(text) => text.is_empty(),
            _ => false,
        };
        if !empty {
            seen.0.insert((name, key));
        }
    }
}
