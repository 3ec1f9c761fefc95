//! The client of a tunnel as its `baggage` header tells of it, where the mesh does not know who is at
//! its address: somebody in another network, behind a gateway. For the labels of metrics and the
//! access log only. It is a claim: nothing that decides may look at it.

use std::sync::Arc;

use mesh::{Identity, Uid, Workload};
use telemetry::TOLD;
use tunnel::hbone::Baggage;

/// A workload that bears what is told, and the identity that was proved. None if nothing is told
/// that a label could show.
///
/// Its uid is made of what is told, so that what looks the same counts together. It is the uid of
/// nothing in the mesh: once no connection is left, the counters go with the next change of the mesh.
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
    let uid = format!("{TOLD}{cluster}/{namespace}/{name}/{service}/{version}");
    // The placeholders only have to be valid; both are replaced.
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
