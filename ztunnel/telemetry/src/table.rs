//! All series, found in two steps: by the ids in a [`SeriesKey`] (every connection), and, when
//! that is new, by the labels it amounts to (replicas of a deployment share a series).

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use foldhash::fast::RandomState;

use super::labels::Labels;
use super::series::{Series, SeriesKey};
use mesh::Uid;

/// How many keys are told apart. A key costs about 300 bytes and a series about 700, so this
/// bounds the table to tens of megabytes whatever clients and control plane do.
const KEY_LIMIT: usize = 20_000;

/// How many of them have a client that only its baggage tells of. It can tell anything, and shall not
/// take the places of those whom the mesh knows.
const TOLD_LIMIT: usize = KEY_LIMIT / 10;

/// How the uid of such a client begins.
pub const TOLD: &str = "baggage/";

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<SeriesKey, Arc<Series>, RandomState>,
    by_labels: HashMap<Labels, Arc<Series>, RandomState>,
    /// How many keys have a client that only its baggage tells of.
    told: usize,
}

/// How many keys there may be.
#[derive(Debug, Clone, Copy)]
struct Limits {
    keys: usize,
    told: usize,
}

const LIMITS: Limits = Limits {
    keys: KEY_LIMIT,
    told: TOLD_LIMIT,
};

/// All series. The lock is written when a key is new or its workloads changed, and for a key that has found
/// no place.
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
        entries.told = entries.by_key.keys().filter(|key| is_told(key)).count();
        // What no key and no connection holds any more will not be counted on again.
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
        // Removed first because an entry keeps the objects of its first key, which may be older.
        let known = self.by_key.remove(key).is_some();
        if !known && self.by_key.len() >= limits.keys {
            let key = SeriesKey::unknown(key.reporter, key.security);
            return self.by_labels.entry(Labels::of(&key)).or_default().clone();
        }
        if !known && is_told(key) {
            if self.told >= limits.told {
                // What it proved still counts, what it tells does not.
                let source = None;
                return self.add(
                    &SeriesKey {
                        source,
                        ..key.clone()
                    },
                    limits,
                );
            }
            self.told += 1;
        }
        let series = self.by_labels.entry(Labels::of(key)).or_default().clone();
        self.by_key.insert(key.clone(), series.clone());
        series
    }
}

fn is_told(key: &SeriesKey) -> bool {
    let source = key.source.as_ref();
    source.is_some_and(|source| source.uid.0.starts_with(TOLD))
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
    fn series_of_workloads_that_left_are_dropped_unless_a_connection_holds_them() {
        let table = Table::default();
        drop(table.series(&key("gone", "gone")));
        let held = table.series(&key("busy", "busy"));
        drop(table.series(&key("here", "here")));
        let labels = || table.0.read().unwrap().by_labels.len();
        table.retain(|uid| &*uid.0 == "here");
        assert_eq!(labels(), 2);
        drop(held);
        table.retain(|uid| &*uid.0 == "here");
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
    fn beyond_the_limit_everything_counts_as_unknown() {
        let mut entries = Entries::default();
        let mut add = |uid| entries.add(&key(uid, uid), Limits { keys: 2, told: 0 });
        let known = add("a");
        add("b");
        let (c, d) = (add("c"), add("d"));
        assert!(Arc::ptr_eq(&c, &d));
        assert!(Arc::ptr_eq(&add("a"), &known), "known keys stay known");
        assert_eq!((entries.by_key.len(), entries.by_labels.len()), (2, 3));
    }

    #[test]
    fn clients_that_only_tell_of_themselves_take_nobodys_place() {
        let mut entries = Entries::default();
        let limits = Limits { keys: 4, told: 2 };
        let mut add = |uid: &str| entries.add(&key(uid, uid), limits);
        let [first, _, third, fourth] =
            ["a", "b", "c", "d"].map(|name| add(&format!("{TOLD}{name}")));
        assert!(Arc::ptr_eq(&third, &fourth), "as one that tells nothing");
        assert!(!Arc::ptr_eq(&first, &third));
        assert!(Arc::ptr_eq(&first, &add("baggage/a")));
        let known = add("known");
        assert!(!Arc::ptr_eq(&known, &third), "there is a place for it");
        let table = Table(RwLock::new(entries));
        table.retain(|uid| &*uid.0 == "known");
        assert_eq!(table.0.into_inner().unwrap().told, 0);
    }
}
