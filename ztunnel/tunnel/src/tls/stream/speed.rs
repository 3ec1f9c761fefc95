//! Measurements of the record layer; ignored by default, because they assert nothing:
//! `cargo test -p tunnel --lib tls::stream::speed -- --ignored --nocapture --test-threads 1`

use std::time::Instant;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use tokio::io::DuplexStream;

use super::super::testing::{TestCa, identity, pattern, tcp};
use super::super::{Credentials, accept, connect};
use super::tests::established_pair;
use super::*;

/// Seals the slices, copies the records as a socket would, and opens them into `out`.
fn transfer(
    local: &mut Stream<DuplexStream>,
    remote: &mut Stream<DuplexStream>,
    slices: &[IoSlice<'_>],
    out: &mut [u8],
) {
    let count = local.outgoing.write(&mut local.keys, slices).unwrap();
    let sealed = local.outgoing.pending().unwrap();
    let length = sealed.len();
    remote.incoming.space()[..length].copy_from_slice(sealed);
    remote.incoming.received(length);
    local.outgoing.sent(length);
    let mut got = 0;
    while got < count {
        let mut read = ReadBuf::new(out);
        let _stop = remote
            .incoming
            .read(&mut remote.keys, &mut remote.outgoing, &mut read)
            .unwrap();
        got += read.filled().len();
    }
}

#[tokio::test]
#[ignore = "a measurement"]
async fn throughput_of_records() {
    let (mut local, mut remote) = established_pair().await;
    let plain = pattern(256 * 1024);
    let mut out = vec![0; 256 * 1024];
    let rounds = 4000;
    for (name, head) in [("one slice", 0), ("after a 9-byte header", 9)] {
        for read_size in [out.len(), 16_384] {
            let begin = Instant::now();
            for _ in 0..rounds {
                let slices = [IoSlice::new(&plain[..head]), IoSlice::new(&plain[head..])];
                transfer(&mut local, &mut remote, &slices, &mut out[..read_size]);
            }
            let rate = (rounds * plain.len()) as f64 / begin.elapsed().as_secs_f64() / 1e9;
            println!("seal, copy and open {name}, reads of {read_size}: {rate:.2} GB/s");
        }
    }
    let begin = Instant::now();
    let rounds = 500_000;
    for _ in 0..rounds {
        let slices = [IoSlice::new(&plain[..9]), IoSlice::new(&plain[..100])];
        transfer(&mut local, &mut remote, &slices, &mut out[..16_384]);
    }
    println!(
        "a small message, sealed and opened: {:?}",
        begin.elapsed() / rounds
    );
}

#[test]
#[ignore = "a measurement"]
fn throughput_of_the_cipher() {
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[1; 16]).unwrap());
    let mut block = vec![0; 16_384];
    let begin = Instant::now();
    let rounds = 64_000_u64;
    for round in 0..rounds {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&round.to_be_bytes());
        let nonce = || Nonce::assume_unique_for_key(nonce);
        let aad = || Aad::from([0; 5]);
        let tag = key
            .seal_in_place_separate_tag(nonce(), aad(), &mut block)
            .unwrap();
        key.open_in_place_separate_tag(nonce(), aad(), tag.as_ref(), &mut block)
            .unwrap();
    }
    let rate = (rounds * 16_384) as f64 / begin.elapsed().as_secs_f64() / 1e9;
    println!("the cipher alone, seal and open in place: {rate:.2} GB/s");
}

#[tokio::test]
#[ignore = "a measurement"]
async fn memory_of_an_idle_stream_and_time_of_a_handshake() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let ca = TestCa::new();
    let (a, b) = (
        ca.credentials(&identity("a")),
        ca.credentials(&identity("b")),
    );
    let expected = [identity("b")];
    let mut streams = Vec::with_capacity(10_000);
    let mut sockets = Vec::new();
    for _ in 0..400 {
        sockets.push(tcp().await);
    }
    let mut before = 0;
    let begin = Instant::now();
    for (number, (local, remote)) in sockets.into_iter().enumerate() {
        if number == 100 {
            before = resident();
        }
        let local = async {
            let mut local = connect(local, &a, &expected).await.unwrap();
            tokio::io::AsyncWriteExt::flush(&mut local).await.unwrap();
            local
        };
        let (local, remote) = tokio::join!(local, accept(remote, &b));
        streams.push((local, remote.unwrap()));
    }
    println!("a handshake, both sides: {:?}", begin.elapsed() / 400);
    println!("an idle stream: {} bytes", (resident() - before) / 600);
    println!(
        "of it the stream itself: {} bytes",
        size_of::<Stream<tokio::net::TcpStream>>()
    );
}

/// The number of bytes that the tunnel measurement transfers.
const TOTAL: usize = 2 << 30;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// One HTTP/2 stream over two threads and loopback TCP; FRAME sets the frame size in bytes.
#[test]
#[ignore = "a measurement"]
fn throughput_of_an_http2_stream() {
    let frame: u32 = std::env::var("FRAME").map_or(1 << 18, |text| text.parse().unwrap());
    let ca = TestCa::new();
    let (a, b) = (
        ca.credentials(&identity("a")),
        ca.credentials(&identity("b")),
    );
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        runtime().block_on(receive(socket, &b, frame));
    });
    let begin = Instant::now();
    let client = std::net::TcpStream::connect(address).unwrap();
    let runtime = runtime();
    let _connection = runtime.block_on(send(client, &a));
    runtime.block_on(async {
        tokio::task::spawn_blocking(move || server.join().unwrap())
            .await
            .unwrap();
    });
    let took = begin.elapsed();
    let rate = TOTAL as f64 / took.as_secs_f64() / 1e9;
    println!("HTTP/2 with frames of {frame}: {rate:.2} GB/s, {took:?}");
}

fn from_std(socket: std::net::TcpStream) -> tokio::net::TcpStream {
    socket.set_nonblocking(true).unwrap();
    tokio::net::TcpStream::from_std(socket).unwrap()
}

async fn receive(socket: std::net::TcpStream, credentials: &Credentials, frame: u32) {
    let stream = accept(from_std(socket), credentials).await.unwrap();
    let mut http = h2::server::Builder::new()
        .max_frame_size(frame)
        .initial_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .handshake::<_, bytes::Bytes>(stream)
        .await
        .unwrap();
    let (request, _) = http.accept().await.unwrap().unwrap();
    let drive = tokio::spawn(async move { while http.accept().await.is_some() {} });
    let mut body = request.into_body();
    let mut got = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        got += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(got, TOTAL);
    drive.abort();
}

async fn send(socket: std::net::TcpStream, credentials: &Credentials) -> impl Sized {
    let stream = connect(from_std(socket), credentials, &[identity("b")])
        .await
        .unwrap();
    let (mut http, connection) = h2::client::Builder::new()
        .max_send_buffer_size(1 << 20)
        .handshake::<_, bytes::Bytes>(stream)
        .await
        .unwrap();
    let drive = tokio::spawn(connection);
    let request = http::Request::builder().uri("https://b/").body(()).unwrap();
    let (response, mut send) = http.send_request(request, false).unwrap();
    let block = bytes::Bytes::from(pattern(1 << 18));
    let mut left = TOTAL;
    while left > 0 {
        send.reserve_capacity(left.min(block.len()));
        let room = std::future::poll_fn(|cx| send.poll_capacity(cx))
            .await
            .unwrap()
            .unwrap();
        let count = room.min(left).min(block.len());
        left -= count;
        send.send_data(block.slice(..count), left == 0).unwrap();
    }
    (drive, response, http)
}
