//! The client against a simulated node agent, packet by packet: the requests that it forwards, its
//! answers, and the packets that end the connection.

mod agent;
mod namespaces;
mod refusals;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use self::agent::{Agent, add, del, keep, snapshot_sent};
use super::{Config, PodUid, Reply, Request, follow};

/// Longer than any step of these tests takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client, and the node that receives its requests.
struct Node {
    requests: mpsc::Receiver<Request>,
    client: Option<std::thread::JoinHandle<()>>,
}

impl Node {
    /// Starts a client of the simulated agent.
    fn following(config: Config) -> Self {
        let (sender, requests) = mpsc::channel(1);
        let run = move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(follow(config, sender));
        };
        Self {
            requests,
            client: Some(std::thread::spawn(run)),
        }
    }

    /// The next request that the client forwards.
    fn next(&mut self) -> Request {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Ok(request) = self.requests.try_recv() {
                return request;
            }
            assert!(Instant::now() < until, "the client forwards nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The next request in short, and the sender of its answer.
    fn next_brief(&mut self) -> (String, Option<Reply>) {
        match self.next() {
            Request::Connected => ("connected".to_owned(), None),
            Request::Add {
                uid, info, reply, ..
            } => {
                let workload = format!("{}/{}", info.namespace, info.name);
                let account = &info.service_account;
                (format!("add {uid} {workload} {account}"), Some(reply))
            }
            Request::Keep { uid, reply } => (format!("keep {uid}"), Some(reply)),
            Request::Delete { uid, reply } => (format!("delete {uid}"), Some(reply)),
            Request::SnapshotSent { reply } => ("snapshot sent".to_owned(), Some(reply)),
        }
    }

    /// Expects this request next, and answers it without an error.
    fn accept(&mut self, expected: &str) {
        let (request, reply) = self.next_brief();
        assert_eq!(request, expected);
        if let Some(reply) = reply {
            reply.send(Ok(())).unwrap();
        }
    }

    /// Expects that the client forwards nothing for a short time.
    fn expect_silence(&mut self) {
        std::thread::sleep(Duration::from_millis(50));
        let request = self.requests.try_recv();
        assert!(request.is_err(), "{request:?}");
    }
}

impl Drop for Node {
    /// The client stops when the receiver of its requests closes.
    fn drop(&mut self) {
        self.requests.close();
        let ended = self.client.take().map(std::thread::JoinHandle::join);
        if !std::thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

/// A simulated agent, and a node with a client of it.
fn agent_and_node() -> (Agent, Node) {
    let agent = Agent::new();
    let node = Node::following(agent.config());
    (agent, node)
}

fn uid(text: &str) -> PodUid {
    PodUid(Arc::from(text))
}

#[test]
fn says_hello_and_forwards_the_requests() {
    let (agent, mut node) = agent_and_node();
    let connection = agent.accept();
    node.accept("connected");
    for (request, expected) in [
        (keep("pod-1"), "keep pod-1"),
        (del("pod-2"), "delete pod-2"),
        (snapshot_sent(), "snapshot sent"),
        (del("pod-1"), "delete pod-1"),
    ] {
        connection.send(&request);
        node.accept(expected);
        assert_eq!(connection.answer().as_deref(), Some(""));
    }
}

#[test]
fn answers_each_request_before_it_reads_the_next() {
    let (agent, mut node) = agent_and_node();
    let connection = agent.accept();
    node.accept("connected");
    for at in 0..3 {
        connection.send(&keep(&at.to_string()));
    }
    for at in 0..3 {
        let (request, reply) = node.next_brief();
        assert_eq!(request, format!("keep {at}"));
        node.expect_silence();
        assert!(connection.is_silent());
        let answer = if at == 1 {
            Err("no".to_owned())
        } else {
            Ok(())
        };
        reply.unwrap().send(answer).unwrap();
        let expected = if at == 1 { "no" } else { "" };
        assert_eq!(connection.answer().as_deref(), Some(expected));
    }
}

#[test]
fn an_agent_that_reads_its_answers_late_loses_none() {
    let (agent, mut node) = agent_and_node();
    let connection = agent.accept();
    node.accept("connected");
    // Long answers, so that they do not all fit into the socket.
    let error = "x".repeat(800);
    let count = 600;
    let sender = connection.clone();
    let sending = std::thread::spawn(move || {
        for at in 0..count {
            sender.send(&keep(&at.to_string()));
        }
    });
    let answering = std::thread::spawn(move || {
        for at in 0..count {
            let (request, reply) = node.next_brief();
            assert_eq!(request, format!("keep {at}"));
            reply.unwrap().send(Err(error.clone())).unwrap();
        }
        node
    });
    std::thread::sleep(Duration::from_millis(100));
    for _ in 0..count {
        assert_eq!(connection.answer().map(|text| text.len()), Some(800));
    }
    sending.join().unwrap();
    drop(answering.join().unwrap());
}

#[test]
fn a_long_error_is_truncated_to_the_agents_buffer() {
    let (agent, mut node) = agent_and_node();
    let connection = agent.accept();
    node.accept("connected");
    connection.send(&keep("pod-1"));
    let (_, reply) = node.next_brief();
    reply.unwrap().send(Err("é".repeat(2000))).unwrap();
    assert_eq!(connection.answer(), Some("é".repeat(450)));
}

#[test]
fn reconnects_when_the_agent_is_back() {
    let (agent, mut node) = agent_and_node();
    for _ in 0..3 {
        let connection = agent.accept();
        node.accept("connected");
        connection.send(&snapshot_sent());
        node.accept("snapshot sent");
        assert_eq!(connection.answer().as_deref(), Some(""));
        drop(connection);
    }
    let config = agent.config();
    // The agent's path is gone for a while.
    drop(agent);
    std::thread::sleep(Duration::from_millis(100));
    let agent = Agent::at(config);
    let connection = agent.accept();
    // The previous agent may have accepted one more connection.
    while node.next_brief().0 != "connected" || connection.is_closed() {}
    connection.send(&keep("pod-1"));
    let (mut request, mut reply) = node.next_brief();
    while request == "connected" {
        (request, reply) = node.next_brief();
    }
    assert_eq!(request, "keep pod-1");
    reply.unwrap().send(Ok(())).unwrap();
}

#[test]
fn a_missing_answer_ends_the_connection_and_not_the_client() {
    let (agent, mut node) = agent_and_node();
    let connection = agent.accept();
    node.accept("connected");
    connection.send(&keep("pod-1"));
    drop(node.next_brief());
    assert_eq!(connection.answer(), None);
    let connection = agent.accept();
    node.accept("connected");
    connection.send(&add("pod-1", "default", "a", "a"));
    // A pod without a namespace is kept.
    node.accept("keep pod-1");
    let answer = connection.answer().unwrap();
    assert!(
        answer.contains("pod-1 was announced without the descriptor"),
        "{answer}"
    );
    assert_eq!(uid("pod-1").to_string(), "pod-1");
}
