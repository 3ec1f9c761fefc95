//! Pods with real network namespaces, and who is there after each thing that the agent says.

use std::fs::File;

use nix::sched::{CloneFlags, unshare};

use super::super::{Added, AnnouncedPods, Full};
use super::agent::{Connection, add, del, keep, snapshot_sent};
use super::*;
use crate::pods::{Handed, Netns, NetnsSource};

/// A network namespace that nobody lives in.
fn netns() -> File {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    };
    std::thread::spawn(make).join().unwrap()
}

/// A node that does no more than write down who is there.
struct Book {
    node: Node,
    announced_pods: AnnouncedPods<Handed>,
}

impl Book {
    /// Has a request obeyed, and returns what has come of it.
    fn does(&mut self, connection: &Connection, packet: impl FnOnce(&Connection)) -> String {
        packet(connection);
        let told = |full: Full| full.to_string();
        let (reply, done) = match self.node.next() {
            Request::Connected => panic!("connected anew"),
            Request::Add {
                uid, netns, reply, ..
            } => match self.announced_pods.add(uid, netns).map_err(told) {
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
                (reply, left.map_or("nobody", |_| "left"))
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

    fn adds(&mut self, connection: &Connection, uid: &str, netns: &File) -> String {
        self.does(connection, |connection| {
            connection.send_with(&add(uid, "default", uid, "a"), &[netns]);
        })
    }

    fn there(&self) -> Vec<String> {
        self.announced_pods
            .pods()
            .map(|(uid, _)| uid.to_string())
            .collect()
    }
}

/// A connection over which the pods a, b and c were named.
fn three_pods(agent: &Agent, node: Node, namespaces: &[File; 3]) -> (Connection, Book) {
    let connection = agent.greeted();
    let announced_pods = AnnouncedPods::default();
    let mut book = Book {
        node,
        announced_pods,
    };
    book.node.obeys("connected");
    for (uid, netns) in ["a", "b", "c"].into_iter().zip(namespaces) {
        assert_eq!(book.adds(&connection, uid, netns), "new");
    }
    let send = |connection: &Connection| connection.send(&snapshot_sent());
    assert_eq!(book.does(&connection, send), "complete");
    (connection, book)
}

#[test]
#[ignore = "needs root"]
fn a_namespace_comes_through_whole() {
    let (agent, mut node) = world();
    let connection = agent.greeted();
    node.obeys("connected");
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
    // Nobody has said which account, which Kubernetes reads as this one.
    assert_eq!(&*info.service_account, "default");
    let place = NetnsSource::Handed(netns);
    assert_eq!(place.to_string(), "of pod pod-1");
    let opened = Netns::of(&place).unwrap();
    assert_eq!(opened.cookie(), expected.cookie());
    assert_eq!(*opened.place(), place);
    reply.send(Ok(())).unwrap();
    assert_eq!(connection.answer().as_deref(), Some(""));
}

#[test]
#[ignore = "needs root"]
fn a_pod_that_is_added_again_is_the_same_in_the_same_namespace_and_another_in_another() {
    let (agent, node) = world();
    let namespaces = [netns(), netns(), netns()];
    let (connection, mut book) = three_pods(&agent, node, &namespaces);
    let [a, _, _] = &namespaces;
    assert_eq!(book.adds(&connection, "a", a), "same");
    assert_eq!(book.adds(&connection, "a", &netns()), "replaced");
    assert_eq!(book.adds(&connection, "a", a), "replaced");
    assert_eq!(book.there(), ["a", "b", "c"]);
}

#[test]
#[ignore = "needs root"]
fn pods_stay_while_the_agent_is_away_and_leave_when_it_names_them_no_more() {
    let (agent, node) = world();
    let namespaces = [netns(), netns(), netns()];
    let (connection, mut book) = three_pods(&agent, node, &namespaces);
    let delete = |connection: &Connection| connection.send(&del("a"));
    assert_eq!(book.does(&connection, delete), "left");
    assert_eq!(book.does(&connection, delete), "nobody");
    drop(connection);
    let connection = agent.greeted();
    book.node.obeys("connected");
    book.announced_pods.begin();
    assert_eq!(book.there(), ["b", "c"]);
    let [a, _, c] = &namespaces;
    assert_eq!(book.adds(&connection, "c", c), "same");
    assert_eq!(book.adds(&connection, "a", a), "new");
    assert_eq!(book.there(), ["a", "b", "c"]);
    let send = |connection: &Connection| connection.send(&snapshot_sent());
    assert_eq!(book.does(&connection, send), "complete");
    assert_eq!(book.there(), ["a", "c"]);
    // Garbage costs the connection and nobody else.
    connection.send_raw(&[0xff; 9], &[]);
    assert!(connection.answer().unwrap().contains("is no request"));
    let connection = agent.greeted();
    book.node.obeys("connected");
    book.announced_pods.begin();
    let keep = |connection: &Connection| connection.send(&keep("a"));
    assert_eq!(book.does(&connection, keep), "kept");
    assert_eq!(book.does(&connection, send), "complete");
    assert_eq!(book.there(), ["a"]);
}
