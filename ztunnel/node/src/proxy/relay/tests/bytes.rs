//! Every byte arrives once and in order and is counted once; the end of a stream is not an abort.

use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::super::pipes::{self, HELD, Lease, MAX_PIPES};
use super::{
    ADAPTIVE, ALL, COPYING, CopyStrategy, SPLICING, pair, pattern, relayed, relayed_between,
    stretch,
};

/// Pseudo-random sizes, the same in every run.
struct Sizes(u64);

impl Sizes {
    /// Mostly small, sometimes large.
    fn next(&mut self) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let random = usize::try_from(self.0 >> 33).unwrap();
        1 + random % (1 << (random % 20))
    }
}

/// Writes `total` bytes in pieces and ends the stream.
async fn write(mut half: WriteHalf<'_>, total: usize, seed: u64) {
    let mut sizes = Sizes(seed);
    let mut at = 0;
    while at < total {
        let to = (at + sizes.next()).min(total);
        half.write_all(&stretch(at, to)).await.unwrap();
        at = to;
        if at % 7 == 0 {
            tokio::task::yield_now().await;
        }
    }
    half.shutdown().await.unwrap();
}

/// Reads in pieces until the end of the stream; returns the number of bytes.
async fn read(mut half: ReadHalf<'_>, seed: u64) -> usize {
    let mut sizes = Sizes(seed);
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let room = sizes.next();
        let count = half.read(&mut buffer[..room]).await.unwrap();
        if count == 0 {
            return at;
        }
        assert!(
            (at..)
                .zip(&buffer[..count])
                .all(|(at, byte)| pattern(at) == *byte),
            "wrong bytes after {at}"
        );
        at += count;
    }
}

/// Both ends write and read at the same time; returns what each received.
async fn talk(mut client: TcpStream, mut server: TcpStream, totals: [usize; 2]) -> [usize; 2] {
    let (client_reads, client_writes) = client.split();
    let (server_reads, server_writes) = server.split();
    let ((), (), response, request) = tokio::join!(
        write(client_writes, totals[0], 1),
        write(server_writes, totals[1], 2),
        read(client_reads, 3),
        read(server_reads, 4),
    );
    [request, response]
}

async fn everything_arrives(strategy: CopyStrategy, streams: [TcpStream; 4], totals: [usize; 2]) {
    let outcome = relayed_between(strategy, streams, async |client, server| {
        talk(client, server, totals).await
    })
    .await;
    let ended = &outcome.ended;
    assert_eq!(outcome.played, totals, "{strategy:?}");
    assert!(ended.broken.is_none(), "{strategy:?}: {ended:?}");
    let counted = [ended.request, ended.response];
    assert_eq!(counted, totals.map(|total| total as u64), "{strategy:?}");
    let series = &outcome.series;
    let counted = [series.received_bytes.get(), series.sent_bytes.get()];
    assert_eq!(counted, totals.map(|total| total as u64), "{strategy:?}");
}

async fn streams() -> [TcpStream; 4] {
    let ((client, accepted), (dialled, server)) = (pair().await, pair().await);
    [client, accepted, dialled, server]
}

#[tokio::test]
async fn pieces_of_any_size_arrive_both_ways_and_are_counted() {
    for strategy in ALL {
        everything_arrives(strategy, streams().await, [9_000_001, 5_000_003]).await;
    }
}

#[tokio::test]
async fn a_connection_without_bytes_ends_in_an_orderly_way() {
    for strategy in ALL {
        everything_arrives(strategy, streams().await, [0, 0]).await;
    }
}

#[tokio::test]
async fn who_has_said_everything_can_still_listen() {
    const ANSWER: usize = 8 << 20;
    for strategy in ALL {
        for client_first in [true, false] {
            let outcome = relayed(strategy, async |client, server| {
                let (mut first, mut second) = if client_first {
                    (client, server)
                } else {
                    (server, client)
                };
                first.write_all(b"that is all").await.unwrap();
                first.shutdown().await.unwrap();
                let mut heard = Vec::new();
                second.read_to_end(&mut heard).await.unwrap();
                assert_eq!(heard, b"that is all");
                let mut answer = second.split();
                let (heard, ()) =
                    tokio::join!(read(first.split().0, 5), write(answer.1, ANSWER, 6));
                assert_eq!(answer.0.read(&mut [0]).await.unwrap(), 0);
                heard
            })
            .await;
            assert_eq!(outcome.played, ANSWER, "{strategy:?}");
            assert!(
                outcome.ended.broken.is_none(),
                "{strategy:?}: {:?}",
                outcome.ended
            );
        }
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_its_writer() {
    /// The buffer size of each of the four sockets; the kernel doubles it.
    const BUFFER: usize = 128 << 10;
    for strategy in ALL {
        let streams = streams().await;
        for stream in &streams {
            SockRef::from(stream).set_send_buffer_size(BUFFER).unwrap();
            SockRef::from(stream).set_recv_buffer_size(BUFFER).unwrap();
        }
        relayed_between(strategy, streams, async |mut client, mut server| {
            let piece = stretch(0, 251 << 8);
            let mut taken = 0;
            // No byte was taken for this long: the writer is blocked.
            let still = std::time::Duration::from_millis(300);
            while let Ok(written) =
                tokio::time::timeout(still, client.write(&piece[taken % 251..])).await
            {
                taken += written.unwrap();
            }
            assert!(
                taken < 8 * BUFFER + 2 * HELD,
                "{strategy:?}: {taken} were taken"
            );
            let (mut to_client, to_server) = (server.split(), client.split());
            let (heard, ()) = tokio::join!(read(to_client.0, 7), async {
                let mut writer = to_server.1;
                writer.shutdown().await.unwrap();
            });
            assert_eq!(heard, taken, "{strategy:?}");
            to_client.1.shutdown().await.unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn without_a_pipe_bytes_are_copied() {
    let _all: Vec<Lease> = (0..MAX_PIPES).map(|_| Lease::take().unwrap()).collect();
    everything_arrives(SPLICING, streams().await, [3_000_001, 2_000_003]).await;
    everything_arrives(ADAPTIVE, streams().await, [3_000_001, 2_000_003]).await;
}

/// `splice(2)` refuses a target in append mode with `EINVAL`, here with bytes in the pipe.
#[tokio::test]
async fn a_sink_that_cannot_be_spliced_is_written_to() {
    for strategy in [ADAPTIVE, SPLICING] {
        let streams = streams().await;
        for stream in &streams[1..3] {
            let append = FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_APPEND);
            fcntl(stream.as_fd(), append).unwrap();
        }
        everything_arrives(strategy, streams, [9_000_001, 5_000_003]).await;
    }
}

#[tokio::test]
async fn a_forbidden_splice_takes_no_pipe() {
    everything_arrives(COPYING, streams().await, [9_000_001, 5_000_003]).await;
    // A used pipe would have been kept.
    assert_eq!(pipes::kept(), 0);
    everything_arrives(ADAPTIVE, streams().await, [9_000_001, 5_000_003]).await;
    assert!(pipes::kept() > 0);
}
