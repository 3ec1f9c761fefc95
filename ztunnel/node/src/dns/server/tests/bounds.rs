//! The limits of a pod.

use tokio::io::AsyncReadExt as _;

use super::super::forward::{read_frame, write_frame};
use super::super::*;
use super::{header, query, reply, run};

#[test]
fn queries_that_wait_for_a_resolver_are_bounded() {
    run(async |world| {
        for number in 0..MOST_WAITING {
            let name = format!("host-{number}.example.com");
            world.ask(&query(7, &name)).await;
            world.passed_on().await;
        }
        world.ask(&query(9999, "one-more.example.com")).await;
        let told = world.told().await;
        assert_eq!((header(&told).id, header(&told).code()), (9999, 2));
        world.refused("too_many", 1);
        // Names of the mesh need no place.
        world.ask(&query(9998, "web")).await;
        assert_eq!(header(&world.told().await).id, 9998);
    });
}

#[test]
fn queries_of_all_pods_that_wait_are_bounded_and_shared() {
    run(async |world| {
        // Other pods use all places but two.
        world.common.waiting.set(MOST_WAITING_IN_ALL - 2);
        world.ask(&query(7, "host.example.com")).await;
        let (passed_on, server) = world.passed_on().await;
        // One place is left, for a pod that has none.
        world.ask(&query(8, "one-more.example.com")).await;
        let told = world.told().await;
        assert_eq!((header(&told).id, header(&told).code()), (8, 2));
        world.refused("too_many", 1);
        let answer = reply(&passed_on);
        world.resolver.send_to(&answer, server).await.unwrap();
        assert_eq!(header(&world.told().await).id, 7);
        assert_eq!(world.common.waiting.get(), MOST_WAITING_IN_ALL - 2);
        world.ask(&query(9, "another.example.com")).await;
        world.passed_on().await;
    });
}

#[test]
fn connections_of_all_pods_are_bounded() {
    run(async |world| {
        world.common.connections.set(MOST_CONNECTIONS_IN_ALL);
        let mut one_more = world.connect().await;
        assert_eq!(one_more.read(&mut [0]).await.unwrap(), 0);
        world.refused("too_many", 1);
        world.common.connections.set(MOST_CONNECTIONS_IN_ALL - 1);
        let mut stream = world.connect().await;
        write_frame(&mut stream, &query(1, "web")).await.unwrap();
        read_frame(&mut stream).await.unwrap();
    });
}

#[test]
fn connections_are_bounded() {
    run(async |world| {
        let mut open = Vec::new();
        for _ in 0..MOST_CONNECTIONS {
            let mut stream = world.connect().await;
            write_frame(&mut stream, &query(1, "web")).await.unwrap();
            read_frame(&mut stream).await.unwrap();
            open.push(stream);
        }
        let mut one_more = world.connect().await;
        assert_eq!(one_more.read(&mut [0]).await.unwrap(), 0);
        world.refused("too_many", 1);
        // A connection that ends frees its place.
        drop(open.pop());
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut stream = world.connect().await;
        write_frame(&mut stream, &query(1, "web")).await.unwrap();
        read_frame(&mut stream).await.unwrap();
    });
}

#[test]
fn garbage_is_dropped_and_the_server_goes_on() {
    run(async |world| {
        let long = [&query(1, "web")[..], &[0; LONGEST_DATAGRAM]].concat();
        let mut response = query(1, "web");
        response[2] |= 0x80;
        for garbage in [&b""[..], b"x", &[0xff; 11], &[0xff; 512], &response, &long] {
            world.ask(garbage).await;
        }
        world.silence().await;
        world.not_passed_on().await;
        world.refused("malformed", 6);
        world.ask(&query(2, "web")).await;
        assert_eq!(header(&world.told().await).id, 2);
    });
}
