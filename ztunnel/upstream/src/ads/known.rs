//! The resources of one type that the client holds, by name: the kind (a removal names only the
//! resource), the version, and a digest that recognizes a resource that is sent again unchanged.

use std::collections::HashMap as StdMap;
use std::sync::Arc;

use aws_lc_rs::digest;
use foldhash::HashMap;

use mesh::{Change, Interner, NamespacedHostname, Uid};

/// The largest list of versions in a request, in bytes: istiod accepts requests of up to 4 MiB.
const VERSIONS_MAX: usize = 3 << 20;
/// The most bytes of a map entry on the wire besides its texts.
const ENTRY_OVERHEAD: usize = 16;

/// A prefix of SHA-256 that is long enough to have no collisions.
pub(super) type Digest = [u8; 16];

pub(super) fn digest_of(content: &[u8]) -> Digest {
    let whole = digest::digest(&digest::SHA256, content);
    let mut digest = Digest::default();
    for (to, from) in digest.iter_mut().zip(whole.as_ref()) {
        *to = *from;
    }
    digest
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Workload,
    Service,
    Policy,
}

#[derive(Debug)]
struct Entry {
    kind: Kind,
    version: Arc<str>,
    digest: Digest,
}

/// The resources of one type that the client holds.
#[derive(Debug, Default)]
pub(super) struct Known {
    entries: HashMap<Arc<str>, Entry>,
}

impl Known {
    pub(super) fn holds(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.keys()
    }

    /// Whether the content is unchanged. If so, the version is updated.
    pub(super) fn is_same(
        &mut self,
        name: &str,
        version: &str,
        digest: &Digest,
        texts: &mut Interner,
    ) -> bool {
        match self.entries.get_mut(name) {
            Some(entry) if entry.digest == *digest => {
                if *entry.version != *version {
                    entry.version = texts.get(version);
                }
                true
            }
            _ => false,
        }
    }

    /// Records a resource. Returns the removal of its former object, if that was of another kind.
    pub(super) fn hold(
        &mut self,
        name: &str,
        version: &str,
        digest: Digest,
        change: &Change,
        texts: &mut Interner,
    ) -> Option<Change> {
        let kind = match change {
            Change::Workload(_) | Change::RemoveWorkload(_) => Kind::Workload,
            Change::Service(_) | Change::RemoveService(_) => Kind::Service,
            Change::Policy(_) | Change::RemovePolicy(_) => Kind::Policy,
            // A resource that could not be decoded is not held.
            Change::Placeholder { .. } | Change::RemovePlaceholder(_) => return None,
        };
        // The uid of a workload is shared with the snapshot.
        let key = match change {
            Change::Workload(workload) if *workload.uid.0 == *name => workload.uid.0.clone(),
            _ => name.into(),
        };
        let entry = Entry {
            kind,
            version: texts.get(version),
            digest,
        };
        // With its key: the map would keep the former key, which the former workload shares.
        let before = self.entries.remove_entry(name);
        self.entries.insert(key, entry);
        let (name, before) = before?;
        (before.kind != kind).then(|| removal(before.kind, name, texts))
    }

    /// Removes a resource. Returns the change that removes its object.
    pub(super) fn release(&mut self, name: &str, texts: &mut Interner) -> Option<Change> {
        let (name, entry) = self.entries.remove_entry(name)?;
        Some(removal(entry.kind, name, texts))
    }

    /// The versions of all resources, for the first request of a stream. `None` if the request would
    /// be too large.
    pub(super) fn versions(&self) -> Option<StdMap<String, String>> {
        let size: usize = self
            .entries
            .iter()
            .map(|(name, entry)| name.len() + entry.version.len() + ENTRY_OVERHEAD)
            .sum();
        (size <= VERSIONS_MAX).then(|| {
            self.entries
                .iter()
                .map(|(name, entry)| (name.to_string(), entry.version.to_string()))
                .collect()
        })
    }
}

fn removal(kind: Kind, name: Arc<str>, texts: &mut Interner) -> Change {
    // The name of a held resource is its key (`resource::read`), but for the default namespace.
    let (namespace, rest) = name.split_once('/').unwrap_or(("", &name));
    let namespace = if namespace.is_empty() {
        "default"
    } else {
        namespace
    };
    match kind {
        Kind::Workload => Change::RemoveWorkload(Uid(name)),
        Kind::Service => Change::RemoveService(NamespacedHostname {
            namespace: texts.get(namespace),
            hostname: texts.get(rest),
        }),
        Kind::Policy => Change::RemovePolicy(format!("{namespace}/{rest}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh::Workload;

    fn workload(uid: &str) -> Change {
        Change::Workload(Box::new(
            Workload::new(uid, "a", "default", "default").unwrap(),
        ))
    }

    fn hold(known: &mut Known, name: &str, version: &str, change: &Change) -> Option<Change> {
        known.hold(
            name,
            version,
            digest_of(name.as_bytes()),
            change,
            &mut Interner::new(),
        )
    }

    #[test]
    fn a_removal_has_the_kind_of_the_held_resource() {
        let mut known = Known::default();
        let mut texts = Interner::new();
        let uid = "c//v1/Pod/default/a";
        assert_eq!(hold(&mut known, uid, "1", &workload(uid)), None);
        let service = Change::Service(Box::default());
        hold(&mut known, "default/a.example", "1", &service);
        hold(&mut known, "/b.example", "1", &service);
        assert_eq!(
            known.release(uid, &mut texts),
            Some(Change::RemoveWorkload(Uid(uid.into())))
        );
        for (name, hostname) in [
            ("default/a.example", "a.example"),
            ("/b.example", "b.example"),
        ] {
            let key = NamespacedHostname {
                namespace: "default".into(),
                hostname: hostname.into(),
            };
            assert_eq!(
                known.release(name, &mut texts),
                Some(Change::RemoveService(key))
            );
        }
        assert_eq!(known.release(uid, &mut texts), None);
        assert!(known.entries.is_empty());
    }

    #[test]
    fn a_resource_that_changes_its_kind_removes_the_former_object() {
        let mut known = Known::default();
        hold(&mut known, "x/y", "1", &workload("x/y"));
        let service = Change::Service(Box::default());
        assert_eq!(
            hold(&mut known, "x/y", "2", &service),
            Some(Change::RemoveWorkload(Uid("x/y".into())))
        );
    }

    /// Also after the workload has changed: its former uid is freed.
    #[test]
    fn the_uid_of_a_workload_is_shared_with_the_mesh() {
        let mut known = Known::default();
        for version in ["1", "2"] {
            let change = workload("x");
            hold(&mut known, "x", version, &change);
            let Change::Workload(workload) = change else {
                unreachable!("it is one")
            };
            let name = known.names().next().unwrap();
            assert!(Arc::ptr_eq(name, &workload.uid.0));
        }
        assert_eq!(known.entries.len(), 1);
    }

    #[test]
    fn a_list_of_versions_that_is_too_large_is_not_sent() {
        let mut known = Known::default();
        let change = workload("x");
        hold(&mut known, "x", "7", &change);
        assert_eq!(
            known.versions(),
            Some(StdMap::from([("x".to_owned(), "7".to_owned())]))
        );
        for at in 0..100 {
            let name = format!("{at}{}", "y".repeat(40_000));
            hold(&mut known, &name, "", &change);
        }
        assert_eq!(known.versions(), None);
    }

    #[test]
    fn unchanged_content_with_a_new_version_is_unchanged() {
        let mut known = Known::default();
        let mut texts = Interner::new();
        let digest = digest_of(b"x");
        hold(&mut known, "x", "1", &workload("x"));
        assert!(known.is_same("x", "2", &digest, &mut texts));
        assert_eq!(known.versions().unwrap()["x"], "2");
        assert!(!known.is_same("x", "2", &digest_of(b"other"), &mut texts));
        assert!(!known.is_same("y", "2", &digest, &mut texts));
    }
}
