//! UDP sockets in one place, of which one steps aside.

use std::net::UdpSocket as Plain;

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

/// The place that a socket was given.
fn group(at: IpAddr) -> (UdpSocket, SocketAddr) {
    let first = UdpSocket::from_std(receive((at, 0).into()).unwrap()).unwrap();
    let place = first.local_addr().unwrap();
    (first, place)
}

fn app(place: SocketAddr) -> Plain {
    let app = Plain::bind((place.ip(), 0)).unwrap();
    app.connect(place).unwrap();
    app.set_read_timeout(Some(PATIENCE)).unwrap();
    app
}

/// What comes next, and from whom.
async fn next(socket: &UdpSocket) -> (u8, SocketAddr) {
    let mut room = [0; 8];
    let received = tokio::time::timeout(PATIENCE, socket.recv_from(&mut room));
    let (_, from) = received.await.expect("a datagram").unwrap();
    (room[0], from)
}

#[tokio::test]
async fn a_socket_that_steps_aside_is_given_nothing_and_loses_nothing() {
    for at in [IpAddr::from([127, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()] {
        let (old, place) = group(at);
        let early = app(place);
        early.send(&[1]).unwrap();
        let new = UdpSocket::from_std(receive(place).unwrap()).unwrap();
        step_aside(&old).unwrap();
        for number in 0..64 {
            let late = app(place);
            late.send(&[number]).unwrap();
            assert_eq!(next(&new).await, (number, late.local_addr().unwrap()));
        }
        // What it had it can read and answer, and the application takes the answer.
        let (what, client) = next(&old).await;
        assert_eq!((what, client), (1, early.local_addr().unwrap()));
        old.send_to(&[2], client).await.unwrap();
        let mut room = [0; 8];
        assert_eq!(early.recv(&mut room).unwrap(), 1);
        assert_eq!(room[0], 2);
    }
}

#[tokio::test]
async fn where_nobody_is_left_the_sender_is_told() {
    let (old, place) = group([127, 0, 0, 1].into());
    step_aside(&old).unwrap();
    let app = app(place);
    app.send(&[1]).unwrap();
    let error = app.recv(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}
