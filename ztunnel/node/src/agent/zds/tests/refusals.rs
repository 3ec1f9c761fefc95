//! What cannot be: pods that are not taken on, and packets that end the connection.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;

use proptest::prelude::*;
use prost::Message as _;

use super::super::MOST_BYTES;
use super::super::message::Message;
use super::super::packet::Packet;
use super::agent::{add, add_without_info, del, keep, snapshot_sent};
use super::world;
use api::istio::workload::zds::WorkloadRequest;

/// A pipe's end to be sent, and the other one, which sees when no copy is left.
fn pipe() -> (OwnedFd, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    (writer.into(), OwnedFd::from(reader).into())
}

#[test]
fn a_pod_that_cannot_be_taken_on_is_refused_and_still_there() {
    let (agent, mut node) = world();
    let connection = agent.greeted();
    node.obeys("connected");
    let file = |path| File::open(path).unwrap();
    let (writer, mut reader) = pipe();
    let good = add("pod-1", "default", "a", "a");
    let long = "a".repeat(254);
    let own = file("/proc/self/ns/net");
    let info = " came with a workload_info whose ";
    for (request, descriptor, complaint) in [
        (&good, None, "pod pod-1 came without the descriptor of its network namespace".to_owned()),
        (&good, Some(File::from(writer)), "what was handed over for pod pod-1 is not a network namespace but no namespace at all".to_owned()),
        (&good, Some(file("/proc/self/ns/mnt")), "what was handed over for pod pod-1 is not a network namespace but a namespace of the kind 0x20000".to_owned()),
        (&good, Some(file("/dev/null")), "what was handed over for pod pod-1 is not a network namespace but no namespace at all".to_owned()),
        (&good, Some(file("/proc/self/ns/net")), "what was handed over for pod pod-1 is the network namespace of the proxy itself".to_owned()),
        (&add_without_info("pod-1"), Some(own.try_clone().unwrap()), "pod pod-1 came without its workload_info".to_owned()),
        (&add("pod-1", "default", "", "a"), Some(own.try_clone().unwrap()), format!("pod pod-1{info}name \"\" cannot be a name in Kubernetes")),
        (&add("pod-1", "a/sa/b", "a", "a"), Some(own.try_clone().unwrap()), format!("pod pod-1{info}namespace \"a/sa/b\" cannot be a name in Kubernetes")),
        (&add("pod-1", "default", "a", "a\nb"), Some(own.try_clone().unwrap()), format!("pod pod-1{info}service_account \"a\\nb\" cannot be a name in Kubernetes")),
        (&add("pod-1", &long, "a", "a"), Some(own.try_clone().unwrap()), format!("pod pod-1{info}namespace {:?} cannot be a name in Kubernetes", &long[1..])),
    ] {
        match &descriptor {
            Some(descriptor) => connection.send_with(request, &[descriptor]),
            None => connection.send(request),
        }
        // Only ours are left behind now.
        drop(descriptor);
        node.obeys("keep pod-1");
        assert_eq!(connection.answer(), Some(complaint));
    }
    // The client has closed what it got: nobody can write any more.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    connection.send(&snapshot_sent());
    node.obeys("snapshot sent");
    assert_eq!(connection.answer().as_deref(), Some(""));
}

#[test]
fn what_the_node_cannot_keep_is_the_answer() {
    let (agent, mut node) = world();
    let connection = agent.greeted();
    node.obeys("connected");
    connection.send(&add_without_info("pod-1"));
    let (heard, reply) = node.hears();
    assert_eq!(heard, "keep pod-1");
    reply.unwrap().send(Err("full".to_owned())).unwrap();
    assert_eq!(connection.answer().as_deref(), Some("full"));
}

#[test]
fn a_packet_that_is_no_request_ends_the_connection() {
    let (agent, mut node) = world();
    let empty = WorkloadRequest { payload: None }.encode_to_vec();
    assert!(empty.is_empty());
    let long = keep(&"a".repeat(MOST_BYTES)).encode_to_vec();
    // A request of a kind that does not exist yet: field 9, an empty message.
    let unknown = vec![9 << 3 | 2, 0];
    let uid = |length| keep(&"a".repeat(length)).encode_to_vec();
    for (bytes, complaint) in [
        (vec![0xff; 16], "has sent what is no request"),
        (long, "has sent a packet of more than 4096 bytes"),
        (unknown, "has sent a request of no known kind"),
        (
            uid(0),
            "has sent the uid of a pod with 0 bytes, expected 1 to 256",
        ),
        (
            uid(257),
            "has sent the uid of a pod with 257 bytes, expected 1 to 256",
        ),
    ] {
        let connection = agent.greeted();
        node.obeys("connected");
        connection.send_raw(&bytes, &[]);
        let answer = connection.answer().unwrap();
        assert!(answer.contains(complaint), "{answer}");
        assert_eq!(connection.answer(), None);
    }
    // An empty packet cannot be told from the end.
    let connection = agent.greeted();
    node.obeys("connected");
    connection.send_raw(&empty, &[]);
    assert_eq!(connection.answer(), None);
    drop(agent.greeted());
    node.obeys("connected");
}

#[test]
fn descriptors_that_nobody_asked_for_end_the_connection_and_are_closed() {
    let (agent, mut node) = world();
    let good = add("pod-1", "default", "a", "a");
    for (request, count, complaint) in [
        (&keep("pod-1"), 1, "with a request that takes none (keep)"),
        (&del("pod-1"), 1, "with a request that takes none (del)"),
        (
            &snapshot_sent(),
            1,
            "with a request that takes none (snapshot_sent)",
        ),
        (&good, 2, "has sent more than one descriptor"),
        (&good, 250, "has sent more than one descriptor"),
        (&keep("pod-1"), 2, "has sent more than one descriptor"),
    ] {
        let connection = agent.greeted();
        node.obeys("connected");
        let (writer, mut reader) = pipe();
        let descriptors: Vec<&dyn std::os::fd::AsFd> = vec![&writer; count];
        connection.send_with(request, &descriptors);
        drop(writer);
        let answer = connection.answer().unwrap();
        assert!(answer.contains(complaint), "{answer}");
        assert_eq!(connection.answer(), None);
        assert_eq!(
            reader.read(&mut [0]).unwrap(),
            0,
            "{complaint}: a copy is open"
        );
    }
}

#[test]
fn the_snapshot_ends_once_and_nobody_is_kept_afterwards() {
    let (agent, mut node) = world();
    for (request, complaint) in [
        (keep("pod-1"), "has sent keep after the end of the snapshot"),
        (
            snapshot_sent(),
            "has sent snapshot_sent after the end of the snapshot",
        ),
    ] {
        let connection = agent.greeted();
        node.obeys("connected");
        connection.send(&snapshot_sent());
        node.obeys("snapshot sent");
        assert_eq!(connection.answer().as_deref(), Some(""));
        connection.send(&request);
        let answer = connection.answer().unwrap();
        assert!(answer.contains(complaint), "{answer}");
        assert_eq!(connection.answer(), None);
    }
}

fn packet(bytes: Vec<u8>) -> Packet {
    Packet {
        bytes,
        descriptor: None,
        too_long: false,
        too_many: false,
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_request_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = Message::read(packet(bytes)) {
            prop_assert!(!message.name().is_empty());
        }
    }

    #[test]
    fn a_request_with_a_wrong_byte_is_a_request_or_an_error(at in 0..40_usize, byte in any::<u8>()) {
        let mut bytes = add("0123456789", "default", "some-pod", "account").encode_to_vec();
        bytes[at] = byte;
        if let Ok(Message::Add(uid, what)) = Message::read(packet(bytes)) {
            prop_assert!(!uid.0.is_empty() && what.is_err());
        }
    }
}
