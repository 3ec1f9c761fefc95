//! The roster by example, and against a model that looks through the whole history each time.

use proptest::prelude::*;

use super::*;

fn uid(name: &str) -> PodUid {
    PodUid(name.into())
}

fn there(announced_pods: &AnnouncedPods<u8>) -> Vec<(&str, u8)> {
    announced_pods
        .pods()
        .map(|(uid, pod)| (&*uid.0, *pod))
        .collect()
}

#[test]
fn who_was_not_named_leaves_when_the_snapshot_ends() {
    let mut announced_pods = AnnouncedPods::default();
    for name in ["a", "b", "c"] {
        assert_eq!(announced_pods.add(uid(name), 1), Ok(Added::New));
    }
    assert_eq!(announced_pods.complete(), []);
    assert!(announced_pods.is_whole());
    announced_pods.begin();
    assert!(!announced_pods.is_whole());
    assert_eq!(there(&announced_pods), [("a", 1), ("b", 1), ("c", 1)]);
    assert_eq!(announced_pods.add(uid("a"), 1), Ok(Added::Same));
    assert_eq!(announced_pods.keep(&uid("b")), Ok(()));
    assert_eq!(announced_pods.complete(), [(uid("c"), 1)]);
    assert_eq!(there(&announced_pods), [("a", 1), ("b", 1)]);
}

#[test]
fn who_is_named_with_something_else_is_replaced() {
    let mut announced_pods = AnnouncedPods::default();
    assert_eq!(announced_pods.add(uid("a"), 1), Ok(Added::New));
    assert_eq!(announced_pods.add(uid("a"), 2), Ok(Added::Replaced(1)));
    assert_eq!(announced_pods.complete(), []);
    assert_eq!(there(&announced_pods), [("a", 2)]);
}

#[test]
fn who_left_after_having_been_named_is_not_kept() {
    let mut announced_pods = AnnouncedPods::default();
    assert_eq!(announced_pods.add(uid("a"), 1), Ok(Added::New));
    announced_pods.begin();
    assert_eq!(announced_pods.keep(&uid("a")), Ok(()));
    assert_eq!(announced_pods.delete(&uid("a")), Some(1));
    assert_eq!(announced_pods.delete(&uid("a")), None);
    assert_eq!(announced_pods.complete(), []);
    assert_eq!(there(&announced_pods), []);
}

#[test]
fn who_is_kept_and_not_known_leaves_the_roster_in_doubt() {
    let mut announced_pods = AnnouncedPods::<u8>::default();
    assert_eq!(announced_pods.keep(&uid("a")), Ok(()));
    assert_eq!(announced_pods.complete(), []);
    assert!(!announced_pods.is_whole());
    assert_eq!(announced_pods.unknown().collect::<Vec<_>>(), [&uid("a")]);
    assert_eq!(announced_pods.add(uid("a"), 1), Ok(Added::New));
    assert!(announced_pods.is_whole());
}

#[test]
fn no_more_than_there_may_be() {
    let mut announced_pods = AnnouncedPods {
        most: 2,
        ..AnnouncedPods::default()
    };
    assert_eq!(announced_pods.add(uid("a"), 1), Ok(Added::New));
    assert_eq!(announced_pods.keep(&uid("b")), Ok(()));
    assert_eq!(announced_pods.add(uid("c"), 1), Err(Full { most: 2 }));
    assert_eq!(announced_pods.keep(&uid("c")), Err(Full { most: 2 }));
    // Those that are there may be named again, and one that leaves makes room.
    assert_eq!(announced_pods.add(uid("a"), 2), Ok(Added::Replaced(1)));
    assert_eq!(announced_pods.add(uid("b"), 1), Ok(Added::New));
    announced_pods.begin();
    assert_eq!(announced_pods.keep(&uid("c")), Err(Full { most: 2 }));
    assert_eq!(announced_pods.delete(&uid("a")), Some(2));
    assert_eq!(announced_pods.add(uid("c"), 1), Ok(Added::New));
}

#[derive(Debug, Clone)]
enum Step {
    Begin,
    Add(u8, u8),
    Keep(u8),
    Delete(u8),
    Complete,
}

fn step() -> impl Strategy<Value = Step> {
    let pod = 0..5_u8;
    prop_oneof![
        1 => Just(Step::Begin),
        4 => (pod.clone(), 0..3_u8).prop_map(|(uid, pod)| Step::Add(uid, pod)),
        2 => pod.clone().prop_map(Step::Keep),
        2 => pod.prop_map(Step::Delete),
        1 => Just(Step::Complete),
    ]
}

/// Whether the connection that a history ends in has named a pod that did not leave afterwards.
fn naively_named(history: &[Step], pod: u8) -> bool {
    for step in history.iter().rev() {
        match step {
            Step::Add(uid, _) | Step::Keep(uid) if *uid == pod => return true,
            Step::Delete(uid) if *uid == pod => return false,
            Step::Begin => return false,
            _ => {}
        }
    }
    false
}

/// What is known about a pod at the end of a history.
fn naively_there(history: &[Step], pod: u8) -> Option<u8> {
    let (last, before) = history.split_last()?;
    match last {
        Step::Add(uid, with) if *uid == pod => Some(*with),
        Step::Delete(uid) if *uid == pod => None,
        Step::Complete if !naively_named(before, pod) => None,
        _ => naively_there(before, pod),
    }
}

proptest! {
    #[test]
    fn does_what_its_whole_history_says(history in proptest::collection::vec(step(), 0..40)) {
        let mut announced_pods = AnnouncedPods::default();
        for (at, step) in history.iter().enumerate() {
            let (before, after) = (&history[..at], &history[..=at]);
            match step {
                Step::Begin => announced_pods.begin(),
                Step::Add(pod, with) => {
                    let expected = match naively_there(before, *pod) {
                        None => Added::New,
                        Some(same) if same == *with => Added::Same,
                        Some(other) => Added::Replaced(other),
                    };
                    prop_assert_eq!(announced_pods.add(uid(&pod.to_string()), *with), Ok(expected));
                }
                Step::Keep(pod) => prop_assert_eq!(announced_pods.keep(&uid(&pod.to_string())), Ok(())),
                Step::Delete(pod) => {
                    let left = announced_pods.delete(&uid(&pod.to_string()));
                    prop_assert_eq!(left, naively_there(before, *pod));
                }
                Step::Complete => {
                    let left = announced_pods.complete();
                    let expected: Vec<_> = (0..5)
                        .filter(|pod| naively_there(after, *pod).is_none())
                        .filter_map(|pod| Some((uid(&pod.to_string()), naively_there(before, pod)?)))
                        .collect();
                    prop_assert_eq!(left, expected);
                }
            }
            for pod in 0..5 {
                let key = uid(&pod.to_string());
                let found = announced_pods.pods().find(|(uid, _)| **uid == key).map(|(_, pod)| *pod);
                prop_assert_eq!(found, naively_there(after, pod));
                let unknown = announced_pods.unknown().any(|uid| *uid == key);
                prop_assert_eq!(unknown, naively_named(after, pod) && found.is_none());
            }
        }
    }
}
