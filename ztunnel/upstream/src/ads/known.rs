//! What is held of one type: by the name of the resource, what kind of thing it is (a removal
//! says only the name), its version, and a digest, by which a resource that comes again unchanged
//! is known.

use std::collections::HashMap as StdMap;
use std::sync::Arc;

use aws_lc_rs::digest;
use foldhash::HashMap;

use mesh::{Change, Interner, NamespacedHostname, Uid};

/// The largest list of versions that is sent, bytes: istiod takes requests of 4 MiB.
const VERSIONS_MAX: usize = 3 << 20;
/// What an entry of a map costs on the wire beside its texts, at most.
const ENTRY_OVERHEAD: usize = 16;

/// Enough of SHA-256 that no two resources share it.
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

/// What is held of one type.
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

    /// Whether this content is what is held. If so, the version is brought up to date.
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

    /// Notes what the resource says now. Where it was something else before, that is gone.
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
            // What could not be read is not held.
            Change::Placeholder { .. } | Change::RemovePlaceholder(_) => return None,
        };
        // A workload's uid is a text that nobody else has: the mesh's copy serves here too.
        let key = match change {
            Change::Workload(workload) if *workload.uid.0 == *name => workload.uid.0.clone(),
            _ => name.into(),
        };
        let entry = Entry {
            kind,
            version: texts.get(version),
            digest,
        };
        // With its key: the map would keep the former one, which is the former workload's.
        let before = self.entries.remove_entry(name);
        self.entries.insert(key, entry);
        let (name, before) = before?;
        (before.kind != kind).then(|| removal(before.kind, name, texts))
    }

    /// The resource is gone.
    pub(super) fn release(&mut self, name: &str, texts: &mut Interner) -> Option<Change> {
        let (name, entry) = self.entries.remove_entry(name)?;
        Some(removal(entry.kind, name, texts))
    }

    /// The versions of what is held, for the first request of a stream. `None` where that would
    /// be too much for a request.
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
    fn a_removal_is_of_what_the_name_stood_for() {
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
    fn a_name_that_stands_for_another_kind_removes_the_first() {
        let mut known = Known::default();
        hold(&mut known, "x/y", "1", &workload("x/y"));
        let service = Change::Service(Box::default());
        assert_eq!(
            hold(&mut known, "x/y", "2", &service),
            Some(Change::RemoveWorkload(Uid("x/y".into())))
        );
    }

    /// Also after the workload has changed: its former uid is held by nobody.
    #[test]
    fn the_name_of_a_workload_is_held_once() {
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
    fn more_versions_than_a_request_holds_are_not_sent() {
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
    fn the_same_content_under_a_new_version_is_the_same() {
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
