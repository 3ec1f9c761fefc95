//! The client against a node agent that these tests play, packet by packet: what it passes on, what
//! it answers, and what it does not put up with.

mod agent;
mod namespaces;
mod refusals;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use self::agent::{Agent, add, del, keep, snapshot_sent};
use super::{Config, PodUid, Reply, Request, follow};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client, and the node that hears from it.
struct Node {
    requests: mpsc::Receiver<Request>,
    client: Option<std::thread::JoinHandle<()>>,
}

impl Node {
    /// Follows the agent that these tests play.
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

    /// What the client passes on next.
    fn next(&mut self) -> Request {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Ok(request) = self.requests.try_recv() {
                return request;
            }
            assert!(Instant::now() < until, "the client passes nothing on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// As [`Self::next`], in short, with what takes the answer.
    fn hears(&mut self) -> (String, Option<Reply>) {
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

    /// Hears this next, and answers that all is well.
    fn obeys(&mut self, expected: &str) {
        let (heard, reply) = self.hears();
        assert_eq!(heard, expected);
        if let Some(reply) = reply {
            reply.send(Ok(())).unwrap();
        }
    }

    /// The client passes nothing on for a moment.
    fn hears_nothing(&mut self) {
        std::thread::sleep(Duration::from_millis(50));
        let heard = self.requests.try_recv();
        assert!(heard.is_err(), "{heard:?}");
    }
}

impl Drop for Node {
    /// The client ends when nobody hears it.
    fn drop(&mut self) {
        self.requests.close();
        let ended = self.client.take().map(std::thread::JoinHandle::join);
        if !std::thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

/// An agent, and a node that follows it.
fn world() -> (Agent, Node) {
    let agent = Agent::new();
    let node = Node::following(agent.config());
    (agent, node)
}

fn uid(text: &str) -> PodUid {
    PodUid(Arc::from(text))
}

#[test]
fn says_hello_and_passes_on_what_the_agent_says() {
    let (agent, mut node) = world();
    let connection = agent.greeted();
    node.obeys("connected");
    for (request, heard) in [
        (keep("pod-1"), "keep pod-1"),
        (del("pod-2"), "delete pod-2"),
        (snapshot_sent(), "snapshot sent"),
        (del("pod-1"), "delete pod-1"),
    ] {
        connection.send(&request);
        node.obeys(heard);
        assert_eq!(connection.answer().as_deref(), Some(""));
    }
}

#[test]
fn answers_each_request_before_it_hears_the_next() {
    let (agent, mut node) = world();
    let connection = agent.greeted();
    node.obeys("connected");
    for at in 0..3 {
        connection.send(&keep(&at.to_string()));
    }
    for at in 0..3 {
        let (heard, reply) = node.hears();
        assert_eq!(heard, format!("keep {at}"));
        node.hears_nothing();
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
    let (agent, mut node) = world();
    let connection = agent.greeted();
    node.obeys("connected");
    // Longer answers, so that they do not all fit into the socket.
    let complaint = "x".repeat(800);
    let count = 600;
    let sender = connection.clone();
    let sending = std::thread::spawn(move || {
        for at in 0..count {
            sender.send(&keep(&at.to_string()));
        }
    });
    let answering = std::thread::spawn(move || {
        for at in 0..count {
            let (heard, reply) = node.hears();
            assert_eq!(heard, format!("keep {at}"));
            reply.unwrap().send(Err(complaint.clone())).unwrap();
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
fn a_long_complaint_fits_into_the_agents_buffer() {
    let (agent, mut node) = world();
    let connection = agent.greeted();
    node.obeys("connected");
    connection.send(&keep("pod-1"));
    let (_, reply) = node.hears();
    reply.unwrap().send(Err("é".repeat(2000))).unwrap();
    assert_eq!(connection.answer(), Some("é".repeat(450)));
}

#[test]
fn comes_back_when_the_agent_does() {
    let (agent, mut node) = world();
    for _ in 0..3 {
        let connection = agent.greeted();
        node.obeys("connected");
        connection.send(&snapshot_sent());
        node.obeys("snapshot sent");
        assert_eq!(connection.answer().as_deref(), Some(""));
        drop(connection);
    }
    let config = agent.config();
    // The agent's path is gone for a while.
    drop(agent);
    std::thread::sleep(Duration::from_millis(100));
    let agent = Agent::at(config);
    let connection = agent.greeted();
    // It may have been let in once more by the agent that went.
    while node.hears().0 != "connected" || connection.is_closed() {}
    connection.send(&keep("pod-1"));
    let (mut heard, mut reply) = node.hears();
    while heard == "connected" {
        (heard, reply) = node.hears();
    }
    assert_eq!(heard, "keep pod-1");
    reply.unwrap().send(Ok(())).unwrap();
}

#[test]
fn an_answer_that_is_not_given_ends_the_connection_and_not_the_client() {
    let (agent, mut node) = world();
    let connection = agent.greeted();
    node.obeys("connected");
    connection.send(&keep("pod-1"));
    drop(node.hears());
    assert_eq!(connection.answer(), None);
    let connection = agent.greeted();
    node.obeys("connected");
    connection.send(&add("pod-1", "default", "a", "a"));
    // Without a namespace it is there all the same.
    node.obeys("keep pod-1");
    let answer = connection.answer().unwrap();
    assert!(
        answer.contains("pod-1 came without the descriptor"),
        "{answer}"
    );
    assert_eq!(uid("pod-1").to_string(), "pod-1");
}
