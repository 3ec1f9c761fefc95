//! An index against the standard map.

use std::collections::HashMap;
use std::hash::Hasher;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    key: u16,
    value: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key(u16);

impl Hash for Key {
    /// Keys below 200 have all the same hash.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.saturating_sub(200).hash(state);
    }
}

impl Keyed for Item {
    type Key<'k> = Key;

    fn key(&self) -> Key {
        Key(self.key)
    }

    fn has(&self, key: Key) -> bool {
        self.key == key.0
    }
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u16, u32),
    Change(u16, u32),
    Remove(u16),
}

fn step(keys: u16) -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..keys, any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
        1 => (0..keys, any::<u32>()).prop_map(|(key, value)| Step::Change(key, value)),
        2 => (0..keys).prop_map(Step::Remove),
    ]
}

fn take(step: &Step, index: &mut Index<Item>, model: &mut HashMap<u16, u32>) {
    match *step {
        Step::Insert(key, value) => assert_eq!(
            index.insert(Item { key, value }).map(|item| item.value),
            model.insert(key, value)
        ),
        Step::Change(key, value) => {
            let found = index.get_mut(Key(key));
            assert_eq!(
                found.as_ref().map(|item| item.value),
                model.get(&key).copied()
            );
            if let Some(item) = found {
                item.value = value;
                model.insert(key, value);
            }
        }
        Step::Remove(key) => assert_eq!(
            index.remove(Key(key)).map(|item| item.value),
            model.remove(&key)
        ),
    }
}

fn assert_same(index: &Index<Item>, model: &HashMap<u16, u32>, keys: u16) {
    for key in 0..keys {
        assert_eq!(
            index.get(Key(key)).map(|item| item.value),
            model.get(&key).copied(),
            "{key}"
        );
    }
    let mut items = index.iter();
    assert_eq!(
        (items.len(), index.is_empty()),
        (model.len(), model.is_empty())
    );
    let found: HashMap<u16, u32> = items.by_ref().map(|item| (item.key, item.value)).collect();
    assert_eq!((items.len(), &found), (0, model));
}

proptest! {
    #[test]
    fn an_index_behaves_as_a_map_and_its_clones_never_change(
        (keys, rounds) in prop::sample::select(vec![30, 300, 2000]).prop_flat_map(|keys| {
            let round = prop::collection::vec(step(keys), 0..600);
            (Just(keys), prop::collection::vec(round, 1..5))
        })
    ) {
        let (mut index, mut model) = (Index::default(), HashMap::new());
        let mut copies = Vec::new();
        for round in rounds {
            for step in round {
                take(&step, &mut index, &mut model);
            }
            copies.push((index.clone(), model.clone()));
        }
        for (index, model) in copies {
            assert_same(&index, &model, keys);
        }
    }
}

#[test]
fn an_index_that_becomes_empty_has_no_nodes() {
    let mut index = Index::default();
    for key in 0..2000 {
        index.insert(Item { key, value: 0 });
    }
    assert!(matches!(index.root, Node::Branch(_)));
    for key in 0..2000 {
        index.remove(Key(key));
    }
    assert!(matches!(index.root, Node::Empty));
}

#[test]
fn a_change_copies_the_path_to_it_only() {
    let mut index = Index::default();
    for key in 0..60_000 {
        index.insert(Item { key, value: 0 });
    }
    let before = index.clone();
    index.insert(Item {
        key: 5000,
        value: 1,
    });
    let (Node::Branch(old), Node::Branch(new)) = (&before.root, &index.root) else {
        panic!("so many items make a branch")
    };
    let shared = old.iter().zip(new.iter()).filter(|pair| match pair {
        (Node::Branch(old), Node::Branch(new)) => Arc::ptr_eq(old, new),
        _ => false,
    });
    assert_eq!(shared.count(), WIDTH - 1);
}
