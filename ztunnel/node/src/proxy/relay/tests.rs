//! Properties of a relay between two TCP connections, tested at its two ends. They hold for copied
//! bytes, for spliced bytes, and for changes in between.

mod aborts;
mod bytes;
mod cost;
mod pipes;
mod tunnel_ends;

use std::future::pending;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::Ended;
use super::splice::{CopyMode, CopyStrategy, Thresholds};
use super::tcp::between;
use telemetry::Series;

/// The timeout of a single wait; only a hanging test reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

const COPYING: CopyStrategy = strategy(CopyMode::Copy, Thresholds::MEASURED);
const ADAPTIVE: CopyStrategy = strategy(CopyMode::Adaptive, Thresholds::MEASURED);
/// Splices from the first read on, and never returns to copying.
const SPLICING: CopyStrategy = strategy(
    CopyMode::Adaptive,
    Thresholds {
        large: 1,
        small: 0,
        patience: 1,
    },
);
/// Changes between copying and splicing all the time.
const RESTLESS: CopyStrategy = strategy(
    CopyMode::Adaptive,
    Thresholds {
        large: 1,
        small: usize::MAX,
        patience: 1,
    },
);
const ALL: [CopyStrategy; 4] = [COPYING, ADAPTIVE, SPLICING, RESTLESS];

const fn strategy(mode: CopyMode, thresholds: Thresholds) -> CopyStrategy {
    CopyStrategy { mode, thresholds }
}

/// The two ends of one TCP connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    (dialled, accepted)
}

/// The outcome of a relay.
struct Outcome<T> {
    played: T,
    ended: Ended,
    series: Series,
}

/// Runs a relay while `play` uses the client's and the server's end.
async fn relayed<T>(
    strategy: CopyStrategy,
    play: impl AsyncFnOnce(TcpStream, TcpStream) -> T,
) -> Outcome<T> {
    let ((client, accepted), (dialled, server)) = (pair().await, pair().await);
    relayed_between(strategy, [client, accepted, dialled, server], play).await
}

/// Runs a relay between prepared connections: client, accepted, dialled, server.
async fn relayed_between<T>(
    strategy: CopyStrategy,
    [client, accepted, dialled, server]: [TcpStream; 4],
    play: impl AsyncFnOnce(TcpStream, TcpStream) -> T,
) -> Outcome<T> {
    let series = Series::default();
    let both = async {
        tokio::join!(
            play(client, server),
            Box::pin(between(accepted, dialled, strategy, &series, pending()))
        )
    };
    let (played, ended) = timeout(PATIENCE, both).await.expect("somebody hangs");
    Outcome {
        played,
        ended,
        series,
    }
}

/// The byte at a position of a stream; 251 divides no buffer's size.
fn pattern(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap()
}

/// The bytes of a stream between two positions.
fn stretch(from: usize, to: usize) -> Vec<u8> {
    (from..to).map(pattern).collect()
}
