//! Queries on connections.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::forward::{read_frame, write_frame};
use super::*;

async fn send(stream: &mut TcpStream, message: &[u8]) {
    write_frame(stream, message).await.unwrap();
}

async fn receive(stream: &mut TcpStream) -> Vec<u8> {
    read_frame(stream).await.unwrap()
}

#[test]
fn a_name_of_the_mesh_is_answered_by_the_server() {
    run(async |world| {
        let mut stream = world.connect().await;
        send(&mut stream, &query(3, "web")).await;
        let answer = receive(&mut stream).await;
        assert!(answer.ends_with(&[10, 1, 0, 1]), "{answer:?}");
        world.expect_count("istio_dns_requests_total", "tcp", 1);
    });
}

#[test]
fn another_name_is_forwarded_over_a_connection() {
    run(async |world| {
        let mut stream = world.connect().await;
        let sent = query(3, "www.example.com");
        send(&mut stream, &sent).await;
        let (mut upstream, _) = world.resolver_tcp.accept().await.unwrap();
        let forwarded = receive(&mut upstream).await;
        assert_eq!(forwarded[2..], sent[2..]);
        send(&mut upstream, &reply(&forwarded)).await;
        assert_eq!(receive(&mut stream).await, reply(&sent));
        // Answers to stream queries are used for datagrams, too.
        world.send(&query(4, "www.example.com")).await;
        assert_eq!(world.receive().await, reply(&query(4, "www.example.com")));
    });
}

#[test]
fn an_answer_to_another_query_is_a_server_failure() {
    run(async |world| {
        let mut stream = world.connect().await;
        send(&mut stream, &query(3, "www.example.com")).await;
        let (mut upstream, _) = world.resolver_tcp.accept().await.unwrap();
        let mut forwarded = receive(&mut upstream).await;
        forwarded[1] ^= 1;
        send(&mut upstream, &reply(&forwarded)).await;
        assert_eq!(
            header(&receive(&mut stream).await).response_code,
            ResponseCode::ServFail
        );
    });
}

#[test]
fn several_queries_in_one_segment_are_answered_in_order() {
    run(async |world| {
        let mut stream = world.connect().await;
        let mut segment = Vec::new();
        for id in 1..=3 {
            let sent = query(id, "web");
            segment.extend(u16::try_from(sent.len()).unwrap().to_be_bytes());
            segment.extend(sent);
        }
        stream.write_all(&segment).await.unwrap();
        for id in 1..=3 {
            assert_eq!(header(&receive(&mut stream).await).id, id);
        }
    });
}

#[test]
fn a_query_in_several_segments_is_answered() {
    run(async |world| {
        let mut stream = world.connect().await;
        stream.set_nodelay(true).unwrap();
        let sent = query(5, "web");
        let length = u16::try_from(sent.len()).unwrap().to_be_bytes();
        for part in [&length[..1], &length[1..], &sent[..7], &sent[7..]] {
            stream.write_all(part).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(header(&receive(&mut stream).await).id, 5);
    });
}

#[test]
fn a_silent_resolver_is_a_server_failure_and_the_connection_stays_open() {
    run_with_short_timeout(async |world| {
        let mut stream = world.connect().await;
        send(&mut stream, &query(6, "www.example.com")).await;
        assert_eq!(
            header(&receive(&mut stream).await).response_code,
            ResponseCode::ServFail
        );
        send(&mut stream, &query(7, "web")).await;
        assert_eq!(
            header(&receive(&mut stream).await).response_code,
            ResponseCode::NoError
        );
    });
}

#[test]
fn a_message_that_is_not_a_query_closes_the_connection() {
    run(async |world| {
        for message in [&b""[..], b"short", &reply(&query(1, "web"))] {
            let mut stream = world.connect().await;
            send(&mut stream, message).await;
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        }
        world.expect_refused("malformed", 3);
    });
}
