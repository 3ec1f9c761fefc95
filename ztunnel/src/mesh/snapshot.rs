//! The whole mesh at one moment, with the indexes that routing and authorization ask.

/// The whole mesh at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {}

pub(super) fn services_by_key<S: serde::Serializer>(
    services: &[(super::NamespacedHostname, super::Ports)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(
        services
            .iter()
            .map(|(key, ports)| (format!("{}/{}", key.namespace, key.hostname), ports)),
    )
}
