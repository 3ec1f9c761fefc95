//! Queries on connections.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::forward::{read_frame, write_frame};
use super::super::*;
use super::{header, query, reply, run, run_with_little_patience};

async fn ask(stream: &mut TcpStream, message: &[u8]) {
    write_frame(stream, message).await.unwrap();
}

async fn told(stream: &mut TcpStream) -> Vec<u8> {
    read_frame(stream).await.unwrap()
}

#[test]
fn a_name_of_the_mesh_is_answered_here() {
    run(async |world| {
        let mut stream = world.connect().await;
        ask(&mut stream, &query(3, "web")).await;
        let told = told(&mut stream).await;
        assert!(told.ends_with(&[10, 1, 0, 1]), "{told:?}");
        world.asked("istio_dns_requests_total", "tcp", 1);
    });
}

#[test]
fn another_name_goes_to_the_resolver_by_a_connection() {
    run(async |world| {
        let mut stream = world.connect().await;
        let asked = query(3, "www.example.com");
        ask(&mut stream, &asked).await;
        let (mut upstream, _) = world.resolver_tcp.accept().await.unwrap();
        let passed_on = told(&mut upstream).await;
        assert_eq!(passed_on[2..], asked[2..]);
        ask(&mut upstream, &reply(&passed_on)).await;
        assert_eq!(told(&mut stream).await, reply(&asked));
        // Answers to stream queries are used for datagrams, too.
        world.ask(&query(4, "www.example.com")).await;
        assert_eq!(world.told().await, reply(&query(4, "www.example.com")));
    });
}

#[test]
fn an_answer_to_something_else_is_a_failure() {
    run(async |world| {
        let mut stream = world.connect().await;
        ask(&mut stream, &query(3, "www.example.com")).await;
        let (mut upstream, _) = world.resolver_tcp.accept().await.unwrap();
        let mut passed_on = told(&mut upstream).await;
        passed_on[1] ^= 1;
        ask(&mut upstream, &reply(&passed_on)).await;
        assert_eq!(header(&told(&mut stream).await).code(), 2);
    });
}

#[test]
fn several_queries_in_one_piece_are_answered_in_their_order() {
    run(async |world| {
        let mut stream = world.connect().await;
        let mut piece = Vec::new();
        for id in 1..=3 {
            let asked = query(id, "web");
            piece.extend(u16::try_from(asked.len()).unwrap().to_be_bytes());
            piece.extend(asked);
        }
        stream.write_all(&piece).await.unwrap();
        for id in 1..=3 {
            assert_eq!(header(&told(&mut stream).await).id, id);
        }
    });
}

#[test]
fn a_query_in_pieces_is_one() {
    run(async |world| {
        let mut stream = world.connect().await;
        stream.set_nodelay(true).unwrap();
        let asked = query(5, "web");
        let length = u16::try_from(asked.len()).unwrap().to_be_bytes();
        for part in [&length[..1], &length[1..], &asked[..7], &asked[7..]] {
            stream.write_all(part).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(header(&told(&mut stream).await).id, 5);
    });
}

#[test]
fn a_resolver_that_is_silent_is_a_failure_and_the_connection_goes_on() {
    run_with_little_patience(async |world| {
        let mut stream = world.connect().await;
        ask(&mut stream, &query(6, "www.example.com")).await;
        assert_eq!(header(&told(&mut stream).await).code(), 2);
        ask(&mut stream, &query(7, "web")).await;
        assert_eq!(header(&told(&mut stream).await).code(), 0);
    });
}

#[test]
fn what_is_no_query_ends_the_connection() {
    run(async |world| {
        for message in [&b""[..], b"short", &reply(&query(1, "web"))] {
            let mut stream = world.connect().await;
            ask(&mut stream, message).await;
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        }
        world.refused("malformed", 3);
    });
}
