//! The stream as a byte stream: bytes arrive complete and in order on any transport, an end of
//! stream is not an error, and an idle stream holds no buffer.

use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::buffer::{LARGE, SMALL};
use super::super::record::OVERHEAD;
use super::super::testing::{pair, pattern};
use super::*;

const CAPACITY: usize = 1 << 20;

/// The sealed bytes that the peer has sent.
pub(super) async fn sealed_bytes(stream: &mut Stream<DuplexStream>) -> Vec<u8> {
    let mut bytes = vec![0; CAPACITY];
    let count = tokio::time::timeout(Duration::from_millis(20), stream.io.read(&mut bytes)).await;
    bytes.truncate(count.map_or(0, |count| count.unwrap()));
    bytes
}

/// A pair whose handshake is complete on both sides: the client's last flight has been read.
pub(super) async fn established_pair() -> (Stream<DuplexStream>, Stream<DuplexStream>) {
    pair(CAPACITY).await
}

pub(super) fn reason(error: &io::Error) -> &'static str {
    RecordError::of(error).map_or("io", RecordError::reason)
}

#[tokio::test]
async fn the_slices_of_a_write_share_a_record() {
    let (mut local, mut remote) = established_pair().await;
    assert!(local.is_write_vectored());
    let slices = [
        IoSlice::new(&[1; 9]),
        IoSlice::new(&[]),
        IoSlice::new(&[2; 100]),
    ];
    assert_eq!(local.write_vectored(&slices).await.unwrap(), 109);
    local.flush().await.unwrap();
    let bytes = sealed_bytes(&mut remote).await;
    assert_eq!(bytes.len(), 109 + OVERHEAD);
    assert_eq!(bytes[..5], [23, 3, 3, 0, 126]);
}

#[tokio::test]
async fn a_frame_of_256_kib_is_sent_in_one_write() {
    let (mut local, mut remote) = established_pair().await;
    let payload = pattern(1 << 18);
    let slices = [IoSlice::new(&[1; 9]), IoSlice::new(&payload)];
    assert_eq!(
        local.write_vectored(&slices).await.unwrap(),
        9 + payload.len()
    );
    local.flush().await.unwrap();
    let length = 9 + payload.len() + 17 * OVERHEAD;
    assert_eq!(sealed_bytes(&mut remote).await.len(), length);
}

#[tokio::test]
async fn records_are_filled_across_writes() {
    let (mut local, mut remote) = established_pair().await;
    let slices = [IoSlice::new(&[1; 9]), IoSlice::new(&[2; 40_000])];
    assert_eq!(local.write_vectored(&slices).await.unwrap(), 40_009);
    local.write_all(&[3; 9_143]).await.unwrap();
    local.flush().await.unwrap();
    assert_eq!(
        sealed_bytes(&mut remote).await.len(),
        3 * (16_384 + OVERHEAD)
    );
}

#[tokio::test]
async fn nothing_is_sent_before_a_flush_or_a_full_buffer() {
    let (mut local, mut remote) = established_pair().await;
    local.write_all(&[1; 1000]).await.unwrap();
    assert!(sealed_bytes(&mut remote).await.is_empty());
    local.write_all(&vec![2; 17 * 16_384]).await.unwrap();
    assert_eq!(
        sealed_bytes(&mut remote).await.len(),
        17 * (16_384 + OVERHEAD)
    );
    local.flush().await.unwrap();
    assert_eq!(sealed_bytes(&mut remote).await.len(), 1000 + OVERHEAD);
}

#[tokio::test]
async fn an_idle_stream_holds_no_buffer() {
    let (mut local, mut remote) = established_pair().await;
    let sent = pattern(700_000);
    let mut got = vec![0; sent.len()];
    let (wrote, read) = tokio::join!(
        async {
            local.write_all(&sent).await?;
            local.flush().await
        },
        remote.read_exact(&mut got)
    );
    wrote.unwrap();
    read.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(5), remote.read_u8()).await;
    assert!(waiting.is_err());
    for stream in [&local, &remote] {
        assert_eq!((stream.incoming.held(), stream.outgoing.held()), (0, 0));
    }
    assert!(size_of::<Stream<tokio::net::TcpStream>>() <= 512);
}

#[tokio::test]
async fn a_partial_record_is_kept_in_a_small_buffer() {
    let (mut local, mut remote) = established_pair().await;
    local.write_all(&pattern(100_000)).await.unwrap();
    let sealed = local.outgoing.pending().unwrap().to_vec();
    let (head, tail) = sealed.split_at(sealed.len() - 1);
    local.io.write_all(head).await.unwrap();
    let mut got = vec![0; 200_000];
    let mut count = 0;
    loop {
        let read =
            tokio::time::timeout(Duration::from_millis(5), remote.read(&mut got[count..])).await;
        let Ok(read) = read else { break };
        count += read.unwrap();
    }
    assert_eq!(count, 98_304);
    assert_eq!(remote.incoming.held(), SMALL);
    local.io.write_all(tail).await.unwrap();
    remote.read_exact(&mut got[count..100_000]).await.unwrap();
    assert_eq!(got[..100_000], pattern(100_000));
    assert_eq!(remote.incoming.held(), 0);
}

#[tokio::test]
async fn a_small_read_buffer_gets_all_bytes_in_parts() {
    let (mut local, mut remote) = established_pair().await;
    local.write_all(&pattern(50_000)).await.unwrap();
    local.flush().await.unwrap();
    let mut got = Vec::new();
    while got.len() < 50_000 {
        let mut piece = [0; 777];
        let count = remote.read(&mut piece).await.unwrap();
        got.extend_from_slice(&piece[..count]);
    }
    assert_eq!(got, pattern(50_000));
}

#[tokio::test]
async fn large_transfers_both_ways_through_a_narrow_pipe() {
    let (local, remote) = pair(4096).await;
    let length = 4 << 20;
    let exchange = |stream: Stream<DuplexStream>| async move {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let sent = pattern(length);
        let mut got = Vec::new();
        let (wrote, read) = tokio::join!(
            async {
                writer.write_all(&sent).await?;
                writer.shutdown().await
            },
            reader.read_to_end(&mut got)
        );
        wrote.unwrap();
        read.unwrap();
        got
    };
    let (a, b) = tokio::join!(exchange(local), exchange(remote));
    let sent = pattern(length);
    assert!(a == sent && b == sent);
}

#[tokio::test]
async fn a_slow_reader_stops_the_writer() {
    let (mut local, _far) = pair(4096).await;
    let block = [7; 8192];
    let mut accepted = 0;
    while let Ok(count) = tokio::time::timeout(Duration::from_millis(5), local.write(&block)).await
    {
        accepted += count.unwrap();
        assert!(accepted < 2 * LARGE, "no backpressure");
    }
    assert!(local.outgoing.held() <= LARGE);
}

#[tokio::test]
async fn either_side_may_close_first_and_still_read() {
    let (local, remote) = established_pair().await;
    for (mut first, mut second) in [(local, remote), {
        let (a, b) = established_pair().await;
        (b, a)
    }] {
        first.write_all(b"last words").await.unwrap();
        first.shutdown().await.unwrap();
        let mut got = Vec::new();
        second.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"last words");
        assert_eq!(second.read(&mut [0; 9]).await.unwrap(), 0, "the end stays");
        second.write_all(&pattern(100_000)).await.unwrap();
        second.shutdown().await.unwrap();
        let mut got = Vec::new();
        first.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, pattern(100_000));
        let error = first.write_all(b"more").await.unwrap_err();
        assert_eq!(
            (error.kind(), reason(&error)),
            (io::ErrorKind::BrokenPipe, "closed")
        );
    }
}

/// A transport that moves a few bytes at a time and is often pending.
struct Choppy {
    io: DuplexStream,
    sizes: Vec<u8>,
    calls: usize,
}

impl Choppy {
    /// How many bytes to move now; 0 means pending.
    fn next(&mut self, cx: &Context<'_>) -> usize {
        self.calls += 1;
        let size = usize::from(self.sizes[self.calls % self.sizes.len()]);
        if size == 0 {
            cx.waker().wake_by_ref();
        }
        size * size
    }
}

impl AsyncRead for Choppy {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let size = self.next(cx);
        if size == 0 {
            return Poll::Pending;
        }
        let mut few = out.take(size);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut few))?;
        let count = few.filled().len();
        out.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Choppy {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let size = self.next(cx);
        if size == 0 {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_write(cx, &bytes[..size.min(bytes.len())])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

fn choppy(stream: Stream<DuplexStream>, sizes: Vec<u8>) -> Stream<Choppy> {
    let Stream {
        io,
        keys,
        incoming,
        outgoing,
        negotiated,
        state,
        writer,
    } = stream;
    let io = Choppy {
        io,
        sizes,
        calls: 0,
    };
    Stream {
        io,
        keys,
        incoming,
        outgoing,
        negotiated,
        state,
        writer,
    }
}

#[tokio::test]
async fn one_byte_at_a_time() {
    let (local, remote) = established_pair().await;
    let (mut local, mut remote) = (choppy(local, vec![1]), choppy(remote, vec![0, 1]));
    let sent = pattern(3000);
    let mut got = Vec::new();
    let (wrote, read) = tokio::join!(
        async {
            local.write_all(&sent).await?;
            local.shutdown().await
        },
        remote.read_to_end(&mut got)
    );
    wrote.unwrap();
    read.unwrap();
    assert_eq!(got, sent);
}

/// A write: the lengths of its slices, and whether a flush follows.
fn writes() -> impl Strategy<Value = Vec<(Vec<usize>, bool)>> {
    let length = prop_oneof![
        0..40_usize,
        0..20_000_usize,
        16_380..16_390_usize,
        0..300_000_usize
    ];
    prop::collection::vec((prop::collection::vec(length, 1..4), any::<bool>()), 1..8)
}

fn sizes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..9).prop_filter("some bytes must move", |sizes| {
        sizes.iter().any(|size| *size > 30)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn bytes_arrive_complete_and_in_order_for_any_chunking(
        writes in writes(),
        (local_sizes, remote_sizes) in (sizes(), sizes()),
        read_size in prop_oneof![1..200_usize, 1..40_000_usize, Just(600_000)],
        key_limit in 2..20_u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (local, remote) = pair(1 << 16).await;
            let (mut local, mut remote) = (choppy(local, local_sizes), choppy(remote, remote_sizes));
            local.outgoing.set_key_limit(key_limit);
            let total: usize = writes.iter().flat_map(|(lengths, _)| lengths).sum();
            let source = pattern(total);
            let sending = async {
                let mut rest = &source[..];
                for (lengths, flush) in &writes {
                    let mut slices = Vec::new();
                    let mut end = 0;
                    for length in lengths {
                        slices.push(IoSlice::new(&rest[end..end + length]));
                        end += length;
                    }
                    let count = local.write_vectored(&slices).await.unwrap();
                    local.write_all(&rest[count..end]).await.unwrap();
                    rest = &rest[end..];
                    if *flush {
                        local.flush().await.unwrap();
                    }
                }
                local.shutdown().await.unwrap();
            };
            let receiving = async {
                let mut got = Vec::with_capacity(total);
                let mut piece = vec![0; read_size];
                loop {
                    match remote.read(&mut piece).await.unwrap() {
                        0 => break got,
                        count => got.extend_from_slice(&piece[..count]),
                    }
                }
            };
            let ((), got) = tokio::join!(sending, receiving);
            assert!(got == source);
            assert_eq!((remote.incoming.held(), local.outgoing.held()), (0, 0));
        });
    }
}
