//! UDP sockets of one `SO_REUSEPORT` group, one of which leaves the group.

use std::net::UdpSocket as Plain;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

/// The first socket of a group, and its address.
fn group(at: IpAddr) -> (UdpSocket, SocketAddr) {
    let first = UdpSocket::from_std(bind_udp((at, 0).into()).unwrap()).unwrap();
    let address = first.local_addr().unwrap();
    (first, address)
}

fn app(server: SocketAddr) -> Plain {
    let app = Plain::bind((server.ip(), 0)).unwrap();
    app.connect(server).unwrap();
    app.set_read_timeout(Some(TIMEOUT)).unwrap();
    app
}

/// The first byte of the next datagram, and its sender.
async fn next(socket: &UdpSocket) -> (u8, SocketAddr) {
    let mut buffer = [0; 8];
    let received = tokio::time::timeout(TIMEOUT, socket.recv_from(&mut buffer));
    let (_, from) = received.await.expect("a datagram").unwrap();
    (buffer[0], from)
}

#[tokio::test]
async fn a_socket_that_leaves_its_group_gets_no_new_datagrams_and_loses_none() {
    for at in [IpAddr::from([127, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()] {
        let (old, address) = group(at);
        let early = app(address);
        early.send(&[1]).unwrap();
        let new = UdpSocket::from_std(bind_udp(address).unwrap()).unwrap();
        leave_reuseport_group(&old).unwrap();
        for number in 0..64 {
            let late = app(address);
            late.send(&[number]).unwrap();
            assert_eq!(next(&new).await, (number, late.local_addr().unwrap()));
        }
        // It can read and answer the datagram in its queue, and the application receives the answer.
        let (byte, client) = next(&old).await;
        assert_eq!((byte, client), (1, early.local_addr().unwrap()));
        old.send_to(&[2], client).await.unwrap();
        let mut buffer = [0; 8];
        assert_eq!(early.recv(&mut buffer).unwrap(), 1);
        assert_eq!(buffer[0], 2);
    }
}

#[tokio::test]
async fn without_other_sockets_in_the_group_the_sender_gets_an_error() {
    let (old, address) = group([127, 0, 0, 1].into());
    leave_reuseport_group(&old).unwrap();
    let app = app(address);
    app.send(&[1]).unwrap();
    let error = app.recv(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}
