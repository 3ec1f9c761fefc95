//! The limits of a pod.

use tokio::io::AsyncReadExt as _;

use super::super::forward::{read_frame, write_frame};
use super::*;

#[test]
fn pending_queries_of_a_pod_are_limited() {
    run(async |world| {
        for number in 0..MAX_POD_QUERIES {
            let name = format!("host-{number}.example.com");
            world.send(&query(7, &name)).await;
            world.receive_forwarded().await;
        }
        world.send(&query(9999, "excess.example.com")).await;
        let answer = world.receive().await;
        expect_server_failure(&answer, 9999);
        world.expect_refused("too_many", 1);
        // Names of the mesh need no permit.
        world.send(&query(9998, "web")).await;
        assert_eq!(header(&world.receive().await).id, 9998);
    });
}

#[test]
fn pending_queries_of_a_worker_are_limited_and_shared() {
    run(async |world| {
        // Other pods hold all permits but two.
        world.shared.pending_queries.set(MAX_WORKER_QUERIES - 2);
        world.send(&query(7, "host.example.com")).await;
        let (forwarded, server) = world.receive_forwarded().await;
        // One permit is left, for a pod that has none.
        world.send(&query(8, "excess.example.com")).await;
        let answer = world.receive().await;
        expect_server_failure(&answer, 8);
        world.expect_refused("too_many", 1);
        let answer = reply(&forwarded);
        world.resolver.send_to(&answer, server).await.unwrap();
        assert_eq!(header(&world.receive().await).id, 7);
        assert_eq!(world.shared.pending_queries.get(), MAX_WORKER_QUERIES - 2);
        world.send(&query(9, "another.example.com")).await;
        world.receive_forwarded().await;
    });
}

#[test]
fn connections_of_a_worker_are_limited() {
    run(async |world| {
        world.shared.connections.set(MAX_WORKER_CONNECTIONS);
        let mut excess = world.connect().await;
        assert_eq!(excess.read(&mut [0]).await.unwrap(), 0);
        world.expect_refused("too_many", 1);
        world.shared.connections.set(MAX_WORKER_CONNECTIONS - 1);
        let mut stream = world.connect().await;
        write_frame(&mut stream, &query(1, "web")).await.unwrap();
        read_frame(&mut stream).await.unwrap();
    });
}

#[test]
fn connections_of_a_pod_are_limited() {
    run(async |world| {
        let mut open = Vec::new();
        for _ in 0..MAX_POD_CONNECTIONS {
            let mut stream = world.connect().await;
            write_frame(&mut stream, &query(1, "web")).await.unwrap();
            read_frame(&mut stream).await.unwrap();
            open.push(stream);
        }
        let mut excess = world.connect().await;
        assert_eq!(excess.read(&mut [0]).await.unwrap(), 0);
        world.expect_refused("too_many", 1);
        // A connection that ends releases its permit.
        drop(open.pop());
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut stream = world.connect().await;
        write_frame(&mut stream, &query(1, "web")).await.unwrap();
        read_frame(&mut stream).await.unwrap();
    });
}

#[test]
fn malformed_datagrams_are_dropped_and_the_server_continues() {
    run(async |world| {
        let long = [&query(1, "web")[..], &[0; MAX_DATAGRAM_QUERY]].concat();
        let mut response = query(1, "web");
        response[2] |= 0x80;
        for malformed in [&b""[..], b"x", &[0xff; 11], &[0xff; 512], &response, &long] {
            world.send(malformed).await;
        }
        world.expect_no_reply().await;
        world.expect_not_forwarded().await;
        world.expect_refused("malformed", 6);
        world.send(&query(2, "web")).await;
        assert_eq!(header(&world.receive().await).id, 2);
    });
}
