//! Pods with real network namespaces, and the announced pods after each request.

use std::fs::File;

use nix::sched::{CloneFlags, unshare};

use super::super::{Added, AnnouncedPods, Full};
use super::agent::{Connection, add, del, keep, snapshot_sent};
use super::*;
use crate::pods::{Netns, NetnsDescriptor, NetnsSource};

/// A new, empty network namespace.
fn netns() -> File {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    };
    std::thread::spawn(make).join().unwrap()
}

/// A node that only records the announced pods.
struct Recorder {
    node: Node,
    announced_pods: AnnouncedPods<NetnsDescriptor>,
}

impl Recorder {
    /// Handles a request without an error, and returns its effect.
    fn handle(&mut self, connection: &Connection, packet: impl FnOnce(&Connection)) -> String {
        packet(connection);
        let text = |full: Full| full.to_string();
        let (reply, done) = match self.node.next() {
            Request::Connected => panic!("the client has reconnected"),
            Request::Add {
                uid, netns, reply, ..
            } => match self.announced_pods.add(uid, netns).map_err(text) {
                Ok(Added::New) => (reply, "new"),
                Ok(Added::Same) => (reply, "same"),
                Ok(Added::Replaced(_)) => (reply, "replaced"),
                Err(full) => panic!("{full}"),
            },
            Request::Keep { uid, reply } => {
                self.announced_pods.keep(&uid).unwrap();
                (reply, "kept")
            }
            Request::Delete { uid, reply } => {
                let left = self.announced_pods.delete(&uid);
                (reply, left.map_or("unknown", |_| "left"))
            }
            Request::SnapshotSent { reply } => {
                self.announced_pods.complete();
                (reply, "complete")
            }
        };
        reply.send(Ok(())).unwrap();
        assert_eq!(connection.answer().as_deref(), Some(""));
        done.to_owned()
    }

    fn add(&mut self, connection: &Connection, uid: &str, netns: &File) -> String {
        self.handle(connection, |connection| {
            connection.send_with(&add(uid, "default", uid, "a"), &[netns]);
        })
    }

    fn present(&self) -> Vec<String> {
        self.announced_pods
            .pods()
            .map(|(uid, _)| uid.to_string())
            .collect()
    }
}

/// A connection that has announced the pods a, b and c.
fn three_pods(agent: &Agent, node: Node, namespaces: &[File; 3]) -> (Connection, Recorder) {
    let connection = agent.accept();
    let announced_pods = AnnouncedPods::default();
    let mut recorder = Recorder {
        node,
        announced_pods,
    };
    recorder.node.accept("connected");
    for (uid, netns) in ["a", "b", "c"].into_iter().zip(namespaces) {
        assert_eq!(recorder.add(&connection, uid, netns), "new");
    }
    let send = |connection: &Connection| connection.send(&snapshot_sent());
    assert_eq!(recorder.handle(&connection, send), "complete");
    (connection, recorder)
}

#[test]
#[ignore = "needs root"]
fn a_namespace_descriptor_arrives() {
    let (agent, mut node) = agent_and_node();
    let connection = agent.accept();
    node.accept("connected");
    let sent = netns();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&sent));
    let expected = Netns::open(std::path::Path::new(&path)).unwrap();
    connection.send_with(&add("pod-1", "default", "a", ""), &[&sent]);
    let Request::Add {
        uid,
        info,
        netns,
        reply,
    } = node.next()
    else {
        panic!("no add");
    };
    assert_eq!(uid, super::uid("pod-1"));
    // The default of Kubernetes for a pod without a service account.
    assert_eq!(&*info.service_account, "default");
    let source = NetnsSource::Descriptor(netns);
    assert_eq!(source.to_string(), "of pod pod-1");
    let opened = Netns::of(&source).unwrap();
    assert_eq!(opened.cookie(), expected.cookie());
    assert_eq!(*opened.source(), source);
    reply.send(Ok(())).unwrap();
    assert_eq!(connection.answer().as_deref(), Some(""));
}

#[test]
#[ignore = "needs root"]
fn a_pod_that_is_announced_again_with_another_namespace_is_replaced() {
    let (agent, node) = agent_and_node();
    let namespaces = [netns(), netns(), netns()];
    let (connection, mut recorder) = three_pods(&agent, node, &namespaces);
    let [a, _, _] = &namespaces;
    assert_eq!(recorder.add(&connection, "a", a), "same");
    assert_eq!(recorder.add(&connection, "a", &netns()), "replaced");
    assert_eq!(recorder.add(&connection, "a", a), "replaced");
    assert_eq!(recorder.present(), ["a", "b", "c"]);
}

#[test]
#[ignore = "needs root"]
fn pods_stay_while_the_agent_is_away_and_leave_when_its_new_snapshot_misses_them() {
    let (agent, node) = agent_and_node();
    let namespaces = [netns(), netns(), netns()];
    let (connection, mut recorder) = three_pods(&agent, node, &namespaces);
    let delete = |connection: &Connection| connection.send(&del("a"));
    assert_eq!(recorder.handle(&connection, delete), "left");
    assert_eq!(recorder.handle(&connection, delete), "unknown");
    drop(connection);
    let connection = agent.accept();
    recorder.node.accept("connected");
    recorder.announced_pods.begin_snapshot();
    assert_eq!(recorder.present(), ["b", "c"]);
    let [a, _, c] = &namespaces;
    assert_eq!(recorder.add(&connection, "c", c), "same");
    assert_eq!(recorder.add(&connection, "a", a), "new");
    assert_eq!(recorder.present(), ["a", "b", "c"]);
    let send = |connection: &Connection| connection.send(&snapshot_sent());
    assert_eq!(recorder.handle(&connection, send), "complete");
    assert_eq!(recorder.present(), ["a", "c"]);
    // An invalid packet ends the connection and leaves the pods.
    connection.send_raw(&[0xff; 9], &[]);
    assert!(
        connection
            .answer()
            .unwrap()
            .contains("cannot decode a packet")
    );
    let connection = agent.accept();
    recorder.node.accept("connected");
    recorder.announced_pods.begin_snapshot();
    let keep = |connection: &Connection| connection.send(&keep("a"));
    assert_eq!(recorder.handle(&connection, keep), "kept");
    assert_eq!(recorder.handle(&connection, send), "complete");
    assert_eq!(recorder.present(), ["a"]);
}
