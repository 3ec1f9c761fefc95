use std::net::{TcpListener, TcpStream};

use hyper::Method;

use super::*;

fn request(host: Option<&str>, origin: Option<&str>) -> PageRequest {
    PageRequest {
        method: Method::GET,
        path: "/".to_owned(),
        query: String::new(),
        host: host.map(str::to_owned),
        origin: origin.map(str::to_owned),
        fetch_site: None,
        client: "127.0.0.1:1".parse().unwrap(),
        server: "127.0.0.1:2".parse().unwrap(),
    }
}

#[test]
fn only_pages_of_this_machine_are_served() {
    for host in [
        None,
        Some("localhost"),
        Some("LOCALHOST:15000"),
        Some("127.0.0.1:15000"),
        Some("127.7.7.7"),
        Some("[::1]:15000"),
    ] {
        assert_eq!(check_site(&request(host, None)), Ok(()), "{host:?}");
    }
    for host in [
        "",
        "x",
        "evil.example:15000",
        "localhost.evil.example",
        "10.0.0.1:15000",
        "127.0.0.1.evil.example",
    ] {
        let refused = check_site(&request(Some(host), None)).unwrap_err();
        assert!(refused.contains("is not a loopback address"), "{refused}");
    }
}

#[test]
fn pages_of_other_sites_are_refused() {
    let host = Some("localhost:15000");
    let own = request(host, Some("http://localhost:15000"));
    assert_eq!(check_site(&own), Ok(()));
    for origin in [
        "http://evil.example",
        "http://localhost:8080",
        "https://localhost:15000",
        "null",
    ] {
        let refused = check_site(&request(host, Some(origin))).unwrap_err();
        assert!(
            refused.contains("may not use the admin interface"),
            "{refused}"
        );
    }
}

#[test]
fn images_and_links_of_other_sites_are_refused() {
    for (site, allowed) in [
        ("none", true),
        ("same-origin", true),
        ("same-site", false),
        ("cross-site", false),
        ("", false),
    ] {
        let request = PageRequest {
            fetch_site: Some(site.to_owned()),
            ..request(Some("localhost"), None)
        };
        assert_eq!(check_site(&request).is_ok(), allowed, "{site}");
    }
}

/// The kernel reports the user 0 for a socket that its process has closed.
#[test]
fn a_client_that_has_closed_its_socket_has_no_user() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, peer) = listener.accept().unwrap();
    let server = accepted.local_addr().unwrap();
    drop(client);
    for _ in 0..20 {
        assert_eq!(user_of(peer, server).unwrap(), None);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn the_user_of_a_connection_is_known() {
    let own = nix::unistd::geteuid().as_raw();
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(listen).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let server = accepted.local_addr().unwrap();
        assert_eq!(user_of(peer, server).unwrap(), Some(own), "{listen}");
        assert_eq!(user_of(server, server).unwrap(), None);
        drop(client);
    }
}

#[test]
fn an_ipv6_socket_that_is_connected_to_an_ipv4_address_is_found() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{port}").parse().unwrap();
    let _client = TcpStream::connect(mapped).unwrap();
    let (accepted, peer) = listener.accept().unwrap();
    let server = accepted.local_addr().unwrap();
    let own = nix::unistd::geteuid().as_raw();
    assert_eq!(user_of(peer, server).unwrap(), Some(own));
}

#[test]
fn the_user_is_the_eighth_field() {
    let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                 \x20  0: 0100007F:3A98 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n\
                 \x20  1: 0100007F:C001 0100007F:3A98 01 00000000:00000000 00:00000000 00000000  1000        0 2 1\n\
                 \x20  2: 0100007F:C003 0100007F:3A98 05 00000000:00000000 00:00000000 00000000     0        0 0 1\n\
                 \x20  3: 0100007F:C004 0100007F:3A98 01 00000000:00000000 00:00000000 00000000     0        0 0 1\n";
    let ends = ends_in_tcp(
        "127.0.0.1:49153".parse().unwrap(),
        "127.0.0.1:15000".parse().unwrap(),
    );
    assert_eq!(user_in(table, &ends.unwrap()), Some(1000));
    let from = |port: &str| [format!("0100007F:{port}"), "0100007F:3A98".to_owned()];
    let other = from("C002");
    for ends in [&other, &from("C003"), &from("C004")] {
        assert_eq!(user_in(table, ends), None, "{ends:?}");
    }
    assert_eq!(user_in("\n  1: x\n", &other), None);
}
