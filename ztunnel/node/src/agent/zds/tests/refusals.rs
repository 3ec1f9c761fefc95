//! Pods that are refused, and packets that end the connection.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;

use proptest::prelude::*;
use prost::Message as _;

use super::super::MAX_BYTES;
use super::super::message::Message;
use super::super::packet::Packet;
use super::agent::{add, add_without_info, del, keep, snapshot_sent};
use super::agent_and_node;
use api::istio::workload::zds::WorkloadRequest;

/// The end of a pipe to be sent, and the other end, which reads the end when no copy is left.
fn pipe() -> (OwnedFd, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    (writer.into(), OwnedFd::from(reader).into())
}

#[test]
fn an_invalid_pod_is_refused_and_kept() {
    let (agent, mut node) = agent_and_node();
    let connection = agent.accept();
    node.accept("connected");
    let file = |path| File::open(path).unwrap();
    let (writer, mut reader) = pipe();
    let good = add("pod-1", "default", "a", "a");
    let long = "a".repeat(254);
    let own = file("/proc/self/ns/net");
    let info = " was announced with a workload_info whose ";
    for (request, descriptor, expected) in [
        (&good, None, "pod pod-1 was announced without the descriptor of its network namespace".to_owned()),
        (&good, Some(File::from(writer)), "the descriptor sent for pod pod-1 is not a network namespace but no namespace at all".to_owned()),
        (&good, Some(file("/proc/self/ns/mnt")), "the descriptor sent for pod pod-1 is not a network namespace but a namespace of the kind 0x20000".to_owned()),
        (&good, Some(file("/dev/null")), "the descriptor sent for pod pod-1 is not a network namespace but no namespace at all".to_owned()),
        (&good, Some(file("/proc/self/ns/net")), "the descriptor sent for pod pod-1 is the network namespace of the proxy itself".to_owned()),
        (&add_without_info("pod-1"), Some(own.try_clone().unwrap()), "pod pod-1 was announced without workload_info".to_owned()),
        (&add("pod-1", "default", "", "a"), Some(own.try_clone().unwrap()), format!("pod pod-1{info}name \"\" is not a valid name in Kubernetes")),
        (&add("pod-1", "a/sa/b", "a", "a"), Some(own.try_clone().unwrap()), format!("pod pod-1{info}namespace \"a/sa/b\" is not a valid name in Kubernetes")),
        (&add("pod-1", "default", "a", "a\nb"), Some(own.try_clone().unwrap()), format!("pod pod-1{info}service_account \"a\\nb\" is not a valid name in Kubernetes")),
        (&add("pod-1", &long, "a", "a"), Some(own.try_clone().unwrap()), format!("pod pod-1{info}namespace {:?} is not a valid name in Kubernetes", &long[1..])),
    ] {
        match &descriptor {
            Some(descriptor) => connection.send_with(request, &[descriptor]),
            None => connection.send(request),
        }
        // Only the client has a copy now.
        drop(descriptor);
        node.accept("keep pod-1");
        assert_eq!(connection.answer(), Some(expected));
    }
    // The client has closed its copies: no process can write any more.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    connection.send(&snapshot_sent());
    node.accept("snapshot sent");
    assert_eq!(connection.answer().as_deref(), Some(""));
}

#[test]
fn the_nodes_error_for_a_refused_pod_is_the_answer() {
    let (agent, mut node) = agent_and_node();
    let connection = agent.accept();
    node.accept("connected");
    connection.send(&add_without_info("pod-1"));
    let (request, reply) = node.next_brief();
    assert_eq!(request, "keep pod-1");
    reply.unwrap().send(Err("full".to_owned())).unwrap();
    assert_eq!(connection.answer().as_deref(), Some("full"));
}

#[test]
fn an_invalid_packet_ends_the_connection() {
    let (agent, mut node) = agent_and_node();
    let empty = WorkloadRequest { payload: None }.encode_to_vec();
    assert!(empty.is_empty());
    let long = keep(&"a".repeat(MAX_BYTES)).encode_to_vec();
    // A request of an unknown kind: field 9, an empty message.
    let unknown = vec![9 << 3 | 2, 0];
    let uid = |length| keep(&"a".repeat(length)).encode_to_vec();
    for (bytes, expected) in [
        (vec![0xff; 16], "cannot decode a packet of the node agent"),
        (long, "has sent a packet of more than 4096 bytes"),
        (unknown, "has sent a request of an unknown kind"),
        (uid(0), "has sent a pod uid of 0 bytes, expected 1 to 256"),
        (
            uid(257),
            "has sent a pod uid of 257 bytes, expected 1 to 256",
        ),
    ] {
        let connection = agent.accept();
        node.accept("connected");
        connection.send_raw(&bytes, &[]);
        let answer = connection.answer().unwrap();
        assert!(answer.contains(expected), "{answer}");
        assert_eq!(connection.answer(), None);
    }
    // An empty packet looks like the end of the connection.
    let connection = agent.accept();
    node.accept("connected");
    connection.send_raw(&empty, &[]);
    assert_eq!(connection.answer(), None);
    drop(agent.accept());
    node.accept("connected");
}

#[test]
fn unexpected_descriptors_end_the_connection_and_are_closed() {
    let (agent, mut node) = agent_and_node();
    let good = add("pod-1", "default", "a", "a");
    for (request, count, expected) in [
        (&keep("pod-1"), 1, "with the request keep, which takes none"),
        (&del("pod-1"), 1, "with the request del, which takes none"),
        (
            &snapshot_sent(),
            1,
            "with the request snapshot_sent, which takes none",
        ),
        (&good, 2, "has sent more than one descriptor"),
        (&good, 250, "has sent more than one descriptor"),
        (&keep("pod-1"), 2, "has sent more than one descriptor"),
    ] {
        let connection = agent.accept();
        node.accept("connected");
        let (writer, mut reader) = pipe();
        let descriptors: Vec<&dyn std::os::fd::AsFd> = vec![&writer; count];
        connection.send_with(request, &descriptors);
        drop(writer);
        let answer = connection.answer().unwrap();
        assert!(answer.contains(expected), "{answer}");
        assert_eq!(connection.answer(), None);
        assert_eq!(
            reader.read(&mut [0]).unwrap(),
            0,
            "{expected}: a copy is open"
        );
    }
}

#[test]
fn the_snapshot_ends_once_and_no_pod_is_kept_afterwards() {
    let (agent, mut node) = agent_and_node();
    for (request, expected) in [
        (keep("pod-1"), "has sent keep after the end of the snapshot"),
        (
            snapshot_sent(),
            "has sent snapshot_sent after the end of the snapshot",
        ),
    ] {
        let connection = agent.accept();
        node.accept("connected");
        connection.send(&snapshot_sent());
        node.accept("snapshot sent");
        assert_eq!(connection.answer().as_deref(), Some(""));
        connection.send(&request);
        let answer = connection.answer().unwrap();
        assert!(answer.contains(expected), "{answer}");
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
        if let Ok(Message::Add(uid, pod)) = Message::read(packet(bytes)) {
            prop_assert!(!uid.0.is_empty() && pod.is_err());
        }
    }
}
