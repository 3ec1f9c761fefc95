//! The client of a tunnel as its `baggage` header describes it, for a client whose address the mesh
//! does not know: one in another network, behind a gateway. Only for the labels of metrics and the
//! access log. The header is an unverified claim, so no authorization or routing may use it.

use std::sync::Arc;

use mesh::{Identity, Uid, Workload};
use telemetry::BAGGAGE_UID;
use tunnel::hbone::Baggage;

/// A workload with the claimed properties and the proved identity. `None` if the claim has no
/// property that a label shows.
///
/// Its uid is derived from the claimed properties, so that equal claims share one series. No
/// workload of the mesh has this uid: when the last connection has ended, the next change of the
/// mesh removes the series.
pub(super) fn client(told: &Baggage, identity: &Identity) -> Option<Arc<Workload>> {
    let name = told.workload.as_ref().map(|(_, name)| name.as_str());
    let fields = [
        told.cluster.as_deref(),
        told.namespace.as_deref(),
        name,
        told.service.as_deref(),
        told.version.as_deref(),
    ];
    if fields.iter().all(Option::is_none) {
        return None;
    }
    let [cluster, namespace, name, service, version] = fields.map(Option::unwrap_or_default);
    let uid = format!("{BAGGAGE_UID}{cluster}/{namespace}/{name}/{service}/{version}");
    // Placeholders that only have to be valid; both are replaced.
    let mut client = Workload::new(&uid, name, "default", "default").ok()?;
    client.uid = Uid(uid.into());
    client.identity = identity.clone();
    client.namespace = namespace.into();
    client.cluster_id = cluster.into();
    client.workload_name = name.into();
    client.canonical_name = service.into();
    client.canonical_revision = version.into();
    if let Some((kind, _)) = told.workload {
        client.workload_type = kind;
    }
    Some(Arc::new(client))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh::WorkloadType;

    #[test]
    fn what_is_told_becomes_labels_and_never_an_identity() {
        let proved = Identity::new("td", "proved", "account").unwrap();
        assert_eq!(client(&Baggage::default(), &proved), None);
        let told = Baggage {
            cluster: Some("far".into()),
            namespace: Some("claimed".into()),
            workload: Some((WorkloadType::Job, "w".into())),
            service: Some("s".into()),
            ..Baggage::default()
        };
        let found = client(&told, &proved).unwrap();
        assert_eq!(found.identity, proved);
        assert_eq!(&*found.namespace, "claimed");
        assert_eq!((&*found.workload_name, &*found.cluster_id), ("w", "far"));
        assert_eq!(
            (&*found.canonical_name, &*found.canonical_revision),
            ("s", "")
        );
        assert!(found.workload_ips.is_empty());
        assert_eq!(client(&told, &proved).unwrap().uid, found.uid);
        let other = Baggage {
            namespace: None,
            ..told
        };
        assert_ne!(client(&other, &proved).unwrap().uid, found.uid);
    }
}
