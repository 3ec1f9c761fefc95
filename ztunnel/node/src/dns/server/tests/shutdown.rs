//! At a handover or at shutdown, queries that have been received are answered.

use super::super::forward::{read_frame, write_frame};
use super::*;

#[test]
fn new_queries_reach_other_sockets_and_pending_ones_are_answered() {
    run(async |world| {
        let sent = query(1, "www.example.com");
        world.send(&sent).await;
        let (forwarded, server) = world.receive_forwarded().await;
        let second = world.second_socket();
        world.stop();
        tokio::time::sleep(Duration::from_millis(50)).await;
        // The kernel selects the socket by the client's port.
        let at = second.local_addr().unwrap();
        for number in 0..64 {
            let app = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            app.send_to(&[number], at).await.unwrap();
            let mut buffer = [0; 8];
            let received = tokio::time::timeout(ERROR_DELAY, second.recv_from(&mut buffer));
            let (_, from) = received
                .await
                .expect("the second socket receives it")
                .unwrap();
            assert_eq!((buffer[0], from), (number, app.local_addr().unwrap()));
        }
        assert!(world.serving.is_finished());
        // The application accepts an answer only from the address that it sent the query to.
        let answer = reply(&forwarded);
        world.resolver.send_to(&answer, server).await.unwrap();
        assert_eq!(world.receive().await, reply(&sent));
    });
}

#[test]
fn queries_in_the_queue_are_answered() {
    run(async |world| {
        for id in 0..100 {
            world.send(&query(id, "web")).await;
        }
        world.stop();
        for id in 0..100 {
            assert_eq!(header(&world.receive().await).id, id);
        }
    });
}

#[test]
fn a_connection_is_closed_after_its_pending_query() {
    run(async |world| {
        let (mut idle, mut pending) = (world.connect().await, world.connect().await);
        let sent = query(3, "www.example.com");
        write_frame(&mut pending, &sent).await.unwrap();
        let (mut upstream, _) = world.resolver_tcp.accept().await.unwrap();
        let forwarded = read_frame(&mut upstream).await.unwrap();
        world.stop();
        let error = read_frame(&mut idle).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        write_frame(&mut upstream, &reply(&forwarded))
            .await
            .unwrap();
        assert_eq!(read_frame(&mut pending).await.unwrap(), reply(&sent));
        let error = read_frame(&mut pending).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    });
}
