//! When another process takes over, or this one ends, queries that have been received are answered.

use super::super::forward::{read_frame, write_frame};
use super::super::*;
use super::{header, query, reply, run};

#[test]
fn questions_go_to_others_at_once_and_what_waits_is_answered() {
    run(async |world| {
        let asked = query(1, "www.example.com");
        world.ask(&asked).await;
        let (passed_on, server) = world.passed_on().await;
        let successor = world.successor();
        world.leave();
        tokio::time::sleep(Duration::from_millis(50)).await;
        // The kernel selects the socket by the client's port.
        let at = successor.local_addr().unwrap();
        for number in 0..64 {
            let app = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            app.send_to(&[number], at).await.unwrap();
            let mut room = [0; 8];
            let received = tokio::time::timeout(PAUSE, successor.recv_from(&mut room));
            let (_, from) = received.await.expect("it goes to the other one").unwrap();
            assert_eq!((room[0], from), (number, app.local_addr().unwrap()));
        }
        assert!(world.serving.is_finished());
        // The application accepts an answer only from the address that it sent the query to.
        let answer = reply(&passed_on);
        world.resolver.send_to(&answer, server).await.unwrap();
        assert_eq!(world.told().await, reply(&asked));
    });
}

#[test]
fn what_has_come_is_answered() {
    run(async |world| {
        for id in 0..100 {
            world.ask(&query(id, "web")).await;
        }
        world.leave();
        for id in 0..100 {
            assert_eq!(header(&world.told().await).id, id);
        }
    });
}

#[test]
fn a_connection_ends_when_its_question_is_answered() {
    run(async |world| {
        let (mut silent, mut asking) = (world.connect().await, world.connect().await);
        let asked = query(3, "www.example.com");
        write_frame(&mut asking, &asked).await.unwrap();
        let (mut upstream, _) = world.resolver_tcp.accept().await.unwrap();
        let passed_on = read_frame(&mut upstream).await.unwrap();
        world.leave();
        let error = read_frame(&mut silent).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        write_frame(&mut upstream, &reply(&passed_on))
            .await
            .unwrap();
        assert_eq!(read_frame(&mut asking).await.unwrap(), reply(&asked));
        let error = read_frame(&mut asking).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    });
}
