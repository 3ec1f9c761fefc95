//! The table of all series, with two indexes: by [`SeriesKey`], which every connection uses, and by
//! labels, for a new key (replicas of a deployment share a series).

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use foldhash::fast::RandomState;

use super::labels::Labels;
use super::series::{Series, SeriesKey};
use mesh::Uid;

/// The most keys. A key takes about 300 bytes and a series about 700, so the table is bounded to
/// tens of megabytes.
const KEY_LIMIT: usize = 20_000;

/// The most keys whose client is known only from its baggage. Such a client can claim any
/// name, and must not use up the keys of workloads of the mesh.
const BAGGAGE_LIMIT: usize = KEY_LIMIT / 10;

/// The prefix of the uid of a client that is known only from its baggage.
pub const BAGGAGE_UID: &str = "baggage/";

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<SeriesKey, Arc<Series>, RandomState>,
    by_labels: HashMap<Labels, Arc<Series>, RandomState>,
    /// The number of keys whose client is known only from its baggage.
    from_baggage: usize,
}

/// The limits of the table.
#[derive(Debug, Clone, Copy)]
struct Limits {
    keys: usize,
    from_baggage: usize,
}

const LIMITS: Limits = Limits {
    keys: KEY_LIMIT,
    from_baggage: BAGGAGE_LIMIT,
};

/// All series. The lock is taken for writing if a key is new or its workloads have changed, and
/// for a key beyond the limit.
#[derive(Debug, Default)]
pub(super) struct Table(RwLock<Entries>);

impl Table {
    pub(super) fn series(&self, key: &SeriesKey) -> Arc<Series> {
        {
            let entries = self.0.read().unwrap_or_else(PoisonError::into_inner);
            if let Some((known, series)) = entries.by_key.get_key_value(key)
                && known.same_objects(key)
            {
                return series.clone();
            }
        }
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .add(key, LIMITS)
    }

    pub(super) fn retain(&self, alive: impl Fn(&Uid) -> bool) {
        let mut entries = self.0.write().unwrap_or_else(PoisonError::into_inner);
        entries.by_key.retain(|key, _series| {
            [&key.source, &key.destination]
                .into_iter()
                .flatten()
                .all(|workload| alive(&workload.uid))
        });
        entries.from_baggage = entries
            .by_key
            .keys()
            .filter(|key| is_from_baggage(key))
            .count();
        // A series that no key and no connection holds is not used again.
        entries
            .by_labels
            .retain(|_labels, series| Arc::strong_count(series) > 1);
    }

    pub(super) fn for_each<E>(
        &self,
        mut visit: impl FnMut(&Labels, &Series) -> Result<(), E>,
    ) -> Result<(), E> {
        let entries = self.0.read().unwrap_or_else(PoisonError::into_inner);
        entries
            .by_labels
            .iter()
            .try_for_each(|(labels, series)| visit(labels, series))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_labels
            .is_empty()
    }
}

impl Entries {
    fn add(&mut self, key: &SeriesKey, limits: Limits) -> Arc<Series> {
        // Removed first, because an entry keeps the objects of its first key, which may be older.
        let known = self.by_key.remove(key).is_some();
        if !known && self.by_key.len() >= limits.keys {
            let key = SeriesKey::unknown(key.reporter, key.security);
            return self.by_labels.entry(Labels::of(&key)).or_default().clone();
        }
        if !known && is_from_baggage(key) {
            if self.from_baggage >= limits.from_baggage {
                // The proven identity is kept, the claimed workload is not.
                let source = None;
                return self.add(
                    &SeriesKey {
                        source,
                        ..key.clone()
                    },
                    limits,
                );
            }
            self.from_baggage += 1;
        }
        let series = self.by_labels.entry(Labels::of(key)).or_default().clone();
        self.by_key.insert(key.clone(), series.clone());
        series
    }
}

fn is_from_baggage(key: &SeriesKey) -> bool {
    let source = key.source.as_ref();
    source.is_some_and(|source| source.uid.0.starts_with(BAGGAGE_UID))
}

#[cfg(test)]
mod tests {
    use super::super::series::{Reporter, SecurityPolicy};
    use super::*;
    use mesh::Workload;

    fn key(uid: &str, app: &str) -> SeriesKey {
        let mut workload = Workload::new(uid, uid, "default", "default").unwrap();
        workload.canonical_name = app.into();
        SeriesKey {
            source: Some(Arc::new(workload)),
            ..SeriesKey::unknown(Reporter::Source, SecurityPolicy::MutualTls)
        }
    }

    #[test]
    fn replicas_with_the_same_labels_share_a_series() {
        let table = Table::default();
        assert!(Arc::ptr_eq(
            &table.series(&key("a", "web")),
            &table.series(&key("b", "web"))
        ));
        assert!(!Arc::ptr_eq(
            &table.series(&key("a", "web")),
            &table.series(&key("c", "db"))
        ));
    }

    #[test]
    fn a_reload_without_change_keeps_the_counters() {
        let table = Table::default();
        let before = table.series(&key("a", "web"));
        let after = table.series(&key("a", "web"));
        assert!(Arc::ptr_eq(&before, &after));
        assert_eq!(table.0.read().unwrap().by_key.len(), 1);
    }

    #[test]
    fn a_workload_that_changes_its_labels_gets_another_series() {
        let table = Table::default();
        let before = table.series(&key("a", "web"));
        let changed = key("a", "api");
        let after = table.series(&changed);
        assert!(!Arc::ptr_eq(&before, &after));
        assert!(Arc::ptr_eq(&after, &table.series(&changed)));
    }

    #[test]
    fn series_of_removed_workloads_are_dropped_after_their_connections() {
        let table = Table::default();
        drop(table.series(&key("gone", "gone")));
        let held = table.series(&key("busy", "busy"));
        drop(table.series(&key("left", "left")));
        let labels = || table.0.read().unwrap().by_labels.len();
        table.retain(|uid| &*uid.0 == "left");
        assert_eq!(labels(), 2);
        drop(held);
        table.retain(|uid| &*uid.0 == "left");
        assert_eq!(labels(), 1);
    }

    #[test]
    fn a_series_survives_while_one_replica_is_left() {
        let table = Table::default();
        table.series(&key("a", "web")).opened.inc();
        drop(table.series(&key("b", "web")));
        table.retain(|uid| &*uid.0 == "b");
        assert_eq!(table.series(&key("b", "web")).opened.get(), 1);
    }

    #[test]
    fn keys_beyond_the_limit_share_the_unknown_series() {
        let mut entries = Entries::default();
        let mut add = |uid| {
            entries.add(
                &key(uid, uid),
                Limits {
                    keys: 2,
                    from_baggage: 0,
                },
            )
        };
        let known = add("a");
        add("b");
        let (c, d) = (add("c"), add("d"));
        assert!(Arc::ptr_eq(&c, &d));
        assert!(Arc::ptr_eq(&add("a"), &known), "known keys stay known");
        assert_eq!((entries.by_key.len(), entries.by_labels.len()), (2, 3));
    }

    #[test]
    fn clients_known_only_from_baggage_do_not_use_up_the_keys_of_workloads() {
        let mut entries = Entries::default();
        let limits = Limits {
            keys: 4,
            from_baggage: 2,
        };
        let mut add = |uid: &str| entries.add(&key(uid, uid), limits);
        let [first, _, third, fourth] =
            ["a", "b", "c", "d"].map(|name| add(&format!("{BAGGAGE_UID}{name}")));
        assert!(
            Arc::ptr_eq(&third, &fourth),
            "beyond the limit the claimed workload is ignored"
        );
        assert!(!Arc::ptr_eq(&first, &third));
        assert!(Arc::ptr_eq(&first, &add("baggage/a")));
        let known = add("known");
        assert!(
            !Arc::ptr_eq(&known, &third),
            "a workload of the mesh has a series of its own"
        );
        let table = Table(RwLock::new(entries));
        table.retain(|uid| &*uid.0 == "known");
        assert_eq!(table.0.into_inner().unwrap().from_baggage, 0);
    }
}
