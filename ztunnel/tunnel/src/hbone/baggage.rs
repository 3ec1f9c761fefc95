//! The `baggage` header (W3C Baggage): the sender's description of its workload, for telemetry.
//!
//! The header is a claim and never an identity: policies use the certificate. Unknown keys are
//! skipped, a value that is too long or not text is dropped, and the size of the header is bounded.

use http::HeaderValue;

use mesh::WorkloadType;

/// W3C Baggage requires at least 8192 bytes; this proxy accepts no more than that.
const HEADER_MAX: usize = 8192;
/// The limit on members of all headers together, as in W3C Baggage.
const MEMBERS_MAX: usize = 64;
/// A Kubernetes name has 253 bytes at most, a label's value 63.
const VALUE_MAX: usize = 253;

/// The description of a workload in a tunnel's `baggage`. `None`: the sender did not give the
/// value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`
    pub cluster: Option<String>,
    /// `k8s.namespace.name`
    pub namespace: Option<String>,
    /// `k8s.<deployment|cronjob|pod|job>.name`: the kind of controller and its name.
    pub workload: Option<(WorkloadType, String)>,
    /// `service.name`
    pub service: Option<String>,
    /// `service.version`
    pub version: Option<String>,
    /// `cloud.region`
    pub region: Option<String>,
    /// `cloud.availability_zone`
    pub zone: Option<String>,
}

fn workload_key(kind: WorkloadType) -> &'static str {
    match kind {
        WorkloadType::Deployment => "k8s.deployment.name",
        WorkloadType::CronJob => "k8s.cronjob.name",
        WorkloadType::Pod => "k8s.pod.name",
        WorkloadType::Job => "k8s.job.name",
    }
}

fn workload_kind(key: &str) -> Option<WorkloadType> {
    [
        WorkloadType::Deployment,
        WorkloadType::CronJob,
        WorkloadType::Pod,
        WorkloadType::Job,
    ]
    .into_iter()
    .find(|&kind| workload_key(kind) == key)
}

impl Baggage {
    /// The value of the header; `None` when every field is empty. It depends only on the workload,
    /// so the caller should keep it rather than encode it for each connection.
    #[must_use]
    pub fn encode(&self) -> Option<HeaderValue> {
        let workload = self.workload.as_ref();
        let members = [
            ("k8s.cluster.name", self.cluster.as_ref()),
            ("k8s.namespace.name", self.namespace.as_ref()),
            (
                workload.map_or("", |(kind, _)| workload_key(*kind)),
                workload.map(|(_, name)| name),
            ),
            ("service.name", self.service.as_ref()),
            ("service.version", self.version.as_ref()),
            ("cloud.region", self.region.as_ref()),
            ("cloud.availability_zone", self.zone.as_ref()),
        ];
        let mut text = String::new();
        for (key, value) in members {
            let Some(value) = value else { continue };
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(key);
            text.push('=');
            percent_encode(value, &mut text);
        }
        if text.is_empty() {
            None
        } else {
            HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).ok()
        }
    }

    /// Reads the `baggage` headers of a request.
    #[must_use]
    pub fn decode<'a>(headers: impl IntoIterator<Item = &'a HeaderValue>) -> Self {
        let mut baggage = Self::default();
        let mut left = HEADER_MAX;
        let mut members = 0;
        for header in headers {
            let Ok(text) = header.to_str() else { continue };
            let Some(rest) = left.checked_sub(text.len()) else {
                break;
            };
            left = rest;
            for member in text.split(',') {
                members += 1;
                if members > MEMBERS_MAX {
                    return baggage;
                }
                baggage.add(member);
            }
        }
        baggage
    }

    /// Adds one `key=value`. Properties after a `;` are not used. The first of two equal keys is
    /// kept.
    fn add(&mut self, member: &str) {
        let member = member.split(';').next().unwrap_or_default();
        let Some((key, value)) = member.split_once('=') else {
            return;
        };
        let key = key.trim();
        let Some(value) = percent_decode(value.trim()) else {
            return;
        };
        let field = match key {
            "k8s.cluster.name" => &mut self.cluster,
            "k8s.namespace.name" => &mut self.namespace,
            "service.name" => &mut self.service,
            "service.version" => &mut self.version,
            "cloud.region" => &mut self.region,
            "cloud.availability_zone" => &mut self.zone,
            _ => {
                if let (Some(kind), None) = (workload_kind(key), &self.workload) {
                    self.workload = Some((kind, value));
                }
                return;
            }
        };
        field.get_or_insert(value);
    }
}

/// Writes W3C Baggage's baggage-octets unchanged and every other byte as `%XX`.
fn percent_encode(value: &str, into: &mut String) {
    for byte in value.bytes() {
        let plain = byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\' | b'%');
        if plain {
            into.push(char::from(byte));
        } else {
            into.push('%');
            into.extend([byte >> 4, byte & 15].map(hex_digit));
        }
    }
}

/// Reverses [`percent_encode`]. A `%` that begins no escape is kept, because not every peer
/// escapes. Returns `None` when the result is too long or has characters that must not appear in a
/// log.
fn percent_decode(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len().min(VALUE_MAX));
    let mut rest = value.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if bytes.len() == VALUE_MAX {
            return None;
        }
        let escaped = match rest {
            [b'%', high, low, ..] => nibble(*high).zip(nibble(*low)),
            _ => None,
        };
        if let Some((high, low)) = escaped {
            bytes.push(high << 4 | low);
            rest = &rest[3..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes)
        .ok()
        .filter(|text| !text.chars().any(char::is_control))
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

fn hex_digit(nibble: u8) -> char {
    char::from(b"0123456789ABCDEF"[usize::from(nibble & 15)])
}
