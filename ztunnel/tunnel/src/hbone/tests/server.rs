//! Accepted connections: malformed and hostile input, headers, drain and timeouts.

use http::{Method, StatusCode};

use super::*;

/// A server whose requests are handled by `answer`, and a byte stream to it.
fn server(
    config: Config,
    answer: impl Fn(Request) + 'static,
) -> (
    DuplexStream,
    watch::Sender<bool>,
    tokio::task::JoinHandle<Result<(), ServeError>>,
) {
    let (local, remote) = tokio::io::duplex(64 * 1024);
    let (drain, drained) = watch::channel(false);
    let serving =
        tokio::task::spawn_local(async move { serve(remote, &config, drained, answer).await });
    (local, drain, serving)
}

async fn client(io: DuplexStream) -> h2::client::SendRequest<Bytes> {
    let (requests, connection) = h2::client::Builder::new().handshake(io).await.unwrap();
    tokio::task::spawn_local(connection);
    requests
}

fn request(method: Method, uri: &str) -> http::Request<()> {
    http::Request::builder()
        .method(method)
        .uri(uri)
        .body(())
        .unwrap()
}

#[test]
fn garbage_instead_of_http2_is_refused() {
    run(async {
        let (mut io, _drain, serving) =
            server(config(), |_| panic!("garbage was accepted as a request"));
        io.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let error = serving.await.unwrap().unwrap_err();
        assert_eq!(
            (error.reason(), error.fault()),
            ("h2_handshake", Fault::Downstream)
        );
    });
}

#[test]
fn garbage_after_the_preface_is_refused() {
    run(async {
        for seed in 0..64_u8 {
            let (mut io, _drain, serving) = server(config(), drop);
            io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                .await
                .unwrap();
            let garbage: Vec<u8> = (0..2000_u16)
                .map(|at| (at.wrapping_mul(at) >> 3).to_le_bytes()[0] ^ seed)
                .collect();
            drop(io.write_all(&garbage).await);
            drop(io);
            // For any input, it must end without a panic.
            drop(serving.await.unwrap());
        }
    });
}

#[test]
fn a_client_that_sends_nothing_times_out() {
    run(async {
        let limits = Config {
            handshake_timeout: Duration::from_millis(20),
            ..config()
        };
        let (_io, _drain, serving) = server(limits, drop);
        assert_eq!(
            serving.await.unwrap().unwrap_err().reason(),
            "h2_handshake_timeout"
        );
    });
}

#[test]
fn a_malformed_connect_or_another_method_gets_400() {
    run(async {
        let (io, _drain, _serving) =
            server(config(), |_| panic!("a malformed request was accepted"));
        let mut requests = client(io).await;
        for request in [
            request(Method::GET, "http://10.0.0.2:8080/"),
            request(Method::POST, "https://example.com/"),
            request(Method::CONNECT, "example.com"),
            request(Method::CONNECT, "10.0.0.2"),
            request(Method::CONNECT, "10.0.0.2:0"),
            request(Method::CONNECT, "10.0.0:80"),
            request(Method::CONNECT, "user@10.0.0.2:80"),
        ] {
            let text = format!("{request:?}");
            let (response, _body) = requests.send_request(request, false).unwrap();
            assert_eq!(
                response.await.unwrap().status(),
                StatusCode::BAD_REQUEST,
                "{text}"
            );
        }
    });
}

#[test]
fn oversized_headers_get_431_and_the_connection_stays_open() {
    run(async {
        let (io, _drain, _serving) =
            server(config(), |request| request.refuse(StatusCode::UNAUTHORIZED));
        let mut requests = client(io).await;
        let mut giant = request(Method::CONNECT, "10.0.0.2:8080");
        giant
            .headers_mut()
            .insert("baggage", "x".repeat(40_000).parse().unwrap());
        let (response, _body) = requests.send_request(giant, false).unwrap();
        assert_eq!(
            response.await.unwrap().status(),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        );
        let mut many = request(Method::CONNECT, "10.0.0.2:8080");
        for number in 0..1000 {
            let name = http::HeaderName::try_from(format!("x-{number}")).unwrap();
            many.headers_mut()
                .insert(name, "some value".parse().unwrap());
        }
        let (response, _body) = requests.send_request(many, false).unwrap();
        assert_eq!(
            response.await.unwrap().status(),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        );
        let small = request(Method::CONNECT, "10.0.0.2:8080");
        let (response, _body) = requests.send_request(small, false).unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::UNAUTHORIZED);
    });
}

#[test]
fn a_flood_of_opened_and_reset_streams_ends_the_connection() {
    run(async {
        let (mut io, _drain, serving) = server(config(), drop);
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        io.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        // :method CONNECT and :authority a:1, without Huffman coding or indexing.
        let connect = b"\x02\x07CONNECT\x01\x03a:1";
        let mut flood = Vec::new();
        for stream in (1..4000).step_by(2) {
            flood.extend(frame(1, 4, stream, connect));
            flood.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
        }
        drop(io.write_all(&flood).await);
        assert_eq!(serving.await.unwrap().unwrap_err().reason(), "protocol");
    });
}

#[test]
fn a_response_other_than_200_is_an_error_with_its_status() {
    run(async {
        for (status, cause) in [
            (StatusCode::BAD_REQUEST, "does not serve"),
            (StatusCode::UNAUTHORIZED, "policy"),
            (StatusCode::FORBIDDEN, "policy"),
            (StatusCode::SERVICE_UNAVAILABLE, "application"),
            (StatusCode::NO_CONTENT, "no meaning"),
        ] {
            let (io, _drain, _serving) = server(config(), move |request| request.refuse(status));
            let pool = Pool::<Infallible>::new(Rc::new(config()));
            let opened = pool
                .open(&key("a"), &connect(), || async { Ok(Dialled::new(io)) })
                .await;
            let error = opened.unwrap_err();
            assert!(error.to_string().contains(cause), "{error}");
            let found =
                matches!(error, OpenError::Refused { status: found, .. } if found == status);
            assert!(found, "{error}");
            assert_eq!(pool.tunnels(), 0);
        }
    });
}

#[test]
fn the_headers_of_a_connect_arrive() {
    run(async {
        let seen = Rc::new(RefCell::new(None));
        let (io, _drain, _serving) = server(config(), {
            let seen = Rc::clone(&seen);
            move |request| *seen.borrow_mut() = Some(request)
        });
        let baggage = Baggage {
            namespace: Some("default".into()),
            ..Baggage::default()
        };
        let connect = Connect {
            authority: "[2001:db8::2]:443".parse().unwrap(),
            forwarded: Some("2001:db8::1".parse().unwrap()),
            host: Some("web.default.svc.cluster.local".into()),
            traceparent: Some(TraceParent {
                trace_id: 7,
                parent_id: 8,
                flags: 1,
            }),
            baggage: baggage.encode(),
        };
        let pool = Pool::<Infallible>::new(Rc::new(config()));
        tokio::task::spawn_local({
            let connect = connect.clone();
            async move {
                pool.open(&key("a"), &connect, || async { Ok(Dialled::new(io)) })
                    .await
            }
        });
        until(|| seen.borrow().is_some()).await;
        let request = seen.take().unwrap();
        assert_eq!(request.authority, connect.authority);
        assert_eq!(request.forwarded, connect.forwarded);
        assert_eq!(request.host.as_deref(), connect.host.as_deref());
        assert_eq!(request.traceparent, connect.traceparent);
        assert_eq!(request.baggage, baggage);
    });
}

#[test]
fn a_drain_lets_open_tunnels_finish() {
    run(async {
        let (mut local, mut remote, pool, peer) = pair(config(), config()).await;
        peer.drain.send_replace(true);
        until(|| pool.is_empty()).await;
        local
            .send
            .send_all(Bytes::from_static(b"after the drain began"))
            .await
            .unwrap();
        assert_eq!(
            remote.recv.data().await.unwrap().unwrap(),
            "after the drain began"
        );
        assert!(peer.ended.borrow().is_empty());
        local.send.finish().unwrap();
        remote.send.finish().unwrap();
        assert!(read_all(&mut local.recv).await.unwrap().is_empty());
        assert!(remote.recv.data().await.is_none());
        drop((local, remote));
        until(|| !peer.ended.borrow().is_empty()).await;
        assert!(matches!(peer.ended.borrow()[0], Ok(())));
    });
}

#[test]
fn a_drain_does_not_wait_for_a_client_without_tunnels() {
    run(async {
        let limits = Config {
            handshake_timeout: Duration::from_millis(30),
            ..config()
        };
        let (mut io, drain, serving) = server(limits, drop);
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        io.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        run_other_tasks().await;
        // The client never acknowledges a frame.
        drain.send_replace(true);
        serving.await.unwrap().unwrap();
    });
}

#[test]
fn a_client_that_opens_no_stream_is_closed_after_the_idle_limit() {
    run(async {
        let limit = Duration::from_millis(30);
        let limits = Config {
            handshake_timeout: limit,
            server_idle: limit,
            ..config()
        };
        let (io, _drain, serving) = server(limits, drop);
        let _requests = client(io).await;
        serving.await.unwrap().unwrap();
    });
}

#[test]
fn a_client_that_answers_no_ping_is_disconnected() {
    run(async {
        let limit = Duration::from_millis(20);
        let keepalive = Some(Keepalive {
            interval: limit,
            timeout: limit,
        });
        let (mut io, _drain, serving) = server(
            Config {
                keepalive,
                ..config()
            },
            drop,
        );
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        io.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        assert_eq!(serving.await.unwrap().unwrap_err().reason(), "unresponsive");
    });
}
