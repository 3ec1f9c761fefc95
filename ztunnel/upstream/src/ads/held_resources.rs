//! The resources of one type that the client holds, by name. Each entry has the kind of the resource
//! (a removal contains only the name), its version, and a digest of its content: an unchanged resource
//! is not reported again.

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
pub(super) struct HeldResources {
    entries: HashMap<Arc<str>, Entry>,
}

impl HeldResources {
    pub(super) fn contains(&self, name: &str) -> bool {
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

    /// Adds or replaces a resource. Returns the removal of the previous object, if its kind differs.
    pub(super) fn insert(
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
        // The text of a workload's uid is shared with the snapshot.
        let key = match change {
            Change::Workload(workload) if *workload.uid.0 == *name => workload.uid.0.clone(),
            _ => name.into(),
        };
        let entry = Entry {
            kind,
            version: texts.get(version),
            digest,
        };
        // Removes the key, too: `insert` would keep the previous key, whose text the previous workload
        // shares.
        let previous = self.entries.remove_entry(name);
        self.entries.insert(key, entry);
        let (name, previous) = previous?;
        (previous.kind != kind).then(|| removal(previous.kind, name, texts))
    }

    /// Removes a resource. Returns the change that removes its object.
    pub(super) fn remove(&mut self, name: &str, texts: &mut Interner) -> Option<Change> {
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
    // The name of a held resource is its key (`resource::decode`), except that the default namespace
    // may be empty.
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

    fn insert(
        held: &mut HeldResources,
        name: &str,
        version: &str,
        change: &Change,
    ) -> Option<Change> {
        held.insert(
            name,
            version,
            digest_of(name.as_bytes()),
            change,
            &mut Interner::new(),
        )
    }

    #[test]
    fn a_removal_has_the_kind_of_the_held_resource() {
        let mut held = HeldResources::default();
        let mut texts = Interner::new();
        let uid = "c//v1/Pod/default/a";
        assert_eq!(insert(&mut held, uid, "1", &workload(uid)), None);
        let service = Change::Service(Box::default());
        insert(&mut held, "default/a.example", "1", &service);
        insert(&mut held, "/b.example", "1", &service);
        assert_eq!(
            held.remove(uid, &mut texts),
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
                held.remove(name, &mut texts),
                Some(Change::RemoveService(key))
            );
        }
        assert_eq!(held.remove(uid, &mut texts), None);
        assert!(held.entries.is_empty());
    }

    #[test]
    fn a_resource_that_changes_its_kind_removes_the_previous_object() {
        let mut held = HeldResources::default();
        insert(&mut held, "x/y", "1", &workload("x/y"));
        let service = Change::Service(Box::default());
        assert_eq!(
            insert(&mut held, "x/y", "2", &service),
            Some(Change::RemoveWorkload(Uid("x/y".into())))
        );
    }

    /// After a change of the workload, too: the previous uid is freed.
    #[test]
    fn the_uid_of_a_workload_is_shared_with_the_snapshot() {
        let mut held = HeldResources::default();
        for version in ["1", "2"] {
            let change = workload("x");
            insert(&mut held, "x", version, &change);
            let Change::Workload(workload) = change else {
                unreachable!("the change is a workload")
            };
            let name = held.names().next().unwrap();
            assert!(Arc::ptr_eq(name, &workload.uid.0));
        }
        assert_eq!(held.entries.len(), 1);
    }

    #[test]
    fn a_list_of_versions_that_is_too_large_is_not_sent() {
        let mut held = HeldResources::default();
        let change = workload("x");
        insert(&mut held, "x", "7", &change);
        assert_eq!(
            held.versions(),
            Some(StdMap::from([("x".to_owned(), "7".to_owned())]))
        );
        for at in 0..100 {
            let name = format!("{at}{}", "y".repeat(40_000));
            insert(&mut held, &name, "", &change);
        }
        assert_eq!(held.versions(), None);
    }

    #[test]
    fn unchanged_content_with_a_new_version_is_unchanged() {
        let mut held = HeldResources::default();
        let mut texts = Interner::new();
        let digest = digest_of(b"x");
        insert(&mut held, "x", "1", &workload("x"));
        assert!(held.is_same("x", "2", &digest, &mut texts));
        assert_eq!(held.versions().unwrap()["x"], "2");
        assert!(!held.is_same("x", "2", &digest_of(b"other"), &mut texts));
        assert!(!held.is_same("y", "2", &digest, &mut texts));
    }
}
